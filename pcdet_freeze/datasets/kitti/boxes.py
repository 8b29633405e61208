"""KITTI's camera boxes and our LiDAR boxes.

KITTI: location is the middle of the bottom face in the rectified camera frame, dimensions here are
[l, h, w], rotation_y turns about the camera's y axis (down), 0 along the camera's x axis.
Ours: (x, y, z) is the middle of the box, heading counter-clockwise from the LiDAR's x axis.
"""

from __future__ import annotations

import numpy as np

from pcdet_freeze.datasets.boxes import rows_of
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.ops.boxes import limit_period

NEAR = 0.1
"""Corners behind the camera are projected as if they were this far before it, in metres."""


def camera_to_lidar(
    location: np.ndarray, dimensions: np.ndarray, rotation_y: np.ndarray, calib: Calibration
) -> np.ndarray:
    """location (N, 3), dimensions (N, 3) [l, h, w], rotation_y (N,) -> boxes (N, 7) float32."""
    length, height, width = np.asarray(dimensions, np.float64).reshape(-1, 3).T
    centre = calib.rect_to_lidar(np.asarray(location).reshape(-1, 3))
    centre[:, 2] += height / 2
    heading = -(np.pi / 2 + np.asarray(rotation_y, np.float64).reshape(-1))
    return np.column_stack([centre, length, width, height, heading]).astype(np.float32)


def lidar_to_camera(
    boxes: np.ndarray, calib: Calibration
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """boxes (N, 7+) -> location (N, 3), dimensions (N, 3) [l, h, w], rotation_y (N,), alpha (N,), radians."""
    boxes = rows_of(boxes).astype(np.float64)
    bottom = boxes[:, :3].copy()
    bottom[:, 2] -= boxes[:, 5] / 2
    location = calib.lidar_to_rect(bottom)
    rotation_y = limit_period(-boxes[:, 6] - np.pi / 2, 0.5, 2 * np.pi)
    alpha = limit_period(rotation_y - np.arctan2(location[:, 0], location[:, 2]), 0.5, 2 * np.pi)
    return location, boxes[:, [3, 5, 4]], rotation_y, alpha


def image_boxes(
    location: np.ndarray,
    dimensions: np.ndarray,
    rotation_y: np.ndarray,
    calib: Calibration,
    image_shape: np.ndarray,
) -> np.ndarray:
    """Boxes (N, 4) [u1, v1, u2, v2] around the eight projected corners, clipped to the image (h, w)."""
    corners = camera_corners(location, dimensions, rotation_y)
    flat = corners.reshape(-1, 3)
    flat[:, 2] = np.maximum(flat[:, 2], NEAR)
    pixels = calib.rect_to_image(flat)[0].reshape(-1, 8, 2)
    limit = np.array([image_shape[1] - 1, image_shape[0] - 1], np.float64)
    return np.concatenate(
        [np.clip(pixels.min(axis=1), 0, limit), np.clip(pixels.max(axis=1), 0, limit)], axis=1
    )


def camera_corners(location: np.ndarray, dimensions: np.ndarray, rotation_y: np.ndarray) -> np.ndarray:
    """Corners (N, 8, 3) in the rectified camera frame: the bottom four, then the top four."""
    length, height, width = (dimensions[:, i, None] for i in range(3))
    along = length / 2 * np.array([1, 1, -1, -1] * 2)
    across = width / 2 * np.array([1, -1, -1, 1] * 2)
    up = -height * np.array([0, 0, 0, 0, 1, 1, 1, 1])
    cos, sin = np.cos(rotation_y)[:, None], np.sin(rotation_y)[:, None]
    turned = np.stack([along * cos + across * sin, up, across * cos - along * sin], axis=-1)
    return turned + location[:, None, :]
