"""Boxes of the LiDAR frame as KITTI annotation dicts, and back in name only: there is no camera.

The "camera" is the LiDAR with its axes renamed: x right = -y, y down = -z, z forward = x, so KITTI's bird's
eye and 3D overlaps are those of the LiDAR boxes. ``bbox`` is the box's extent in azimuth, ten pixels a
degree, with a nominal height of 50 pixels that no difficulty rejects; the image AP says little here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.synthetic.labels import occlusion_level
from pcdet_freeze.datasets.synthetic.render import Frame

BOX_HEIGHT_PIXELS = 50.0
PIXELS_A_DEGREE = 10.0

Anno = dict[str, Any]


def boxes_to_anno(boxes: NDArray[np.floating], names: NDArray[np.str_], frame_id: str) -> Anno:
    """Annotation columns of (K, 7) LiDAR boxes: location is the bottom's centre, dimensions l, h, w."""
    boxes = np.asarray(boxes).reshape(-1, 7)
    x, y, z, length, width, height, heading = boxes.T
    rotation_y = _wrap(-heading - np.pi / 2)
    azimuth = np.rad2deg(np.arctan2(-y, x))
    spread = np.rad2deg(np.arctan2(length / 2, np.maximum(np.hypot(x, y), 0.1)))
    left, right = (PIXELS_A_DEGREE * (azimuth + side * spread + 180) for side in (-1, 1))
    return {
        "name": np.asarray(names, dtype=str),
        "truncated": np.zeros(len(boxes)),
        "occluded": np.zeros(len(boxes), np.int64),
        "alpha": _wrap(rotation_y - np.arctan2(-y, x)),
        "bbox": np.stack([left, np.zeros_like(left), right, np.full_like(left, BOX_HEIGHT_PIXELS)], axis=1),
        "dimensions": np.stack([length, height, width], axis=1),
        "location": np.stack([-y, height / 2 - z, x], axis=1),
        "rotation_y": rotation_y,
        "boxes_lidar": boxes,
        "frame_id": frame_id,
    }


def ground_truth_anno(frame: Frame, frame_id: str, limits: NDArray[np.float32], min_points: int) -> Anno:
    """What a detector should find in a frame.

    ``occluded`` by :func:`occlusion_level`; 3 (never counted, never punished) also where the box's centre is
    outside ``limits`` in x or y. ``difficulty`` repeats it as upstream does: 0, 1, 2, or -1.
    """
    anno = boxes_to_anno(frame.boxes, frame.names, frame_id)
    counted = in_range(frame.boxes, limits)
    levels = [
        occlusion_level(share, number, min_points) if inside else 3
        for share, number, inside in zip(frame.occlusion, frame.num_points, counted, strict=True)
    ]
    anno["occluded"] = np.array(levels, np.int64)
    anno["difficulty"] = np.where(anno["occluded"] > 2, -1, anno["occluded"])
    anno["num_points_in_gt"] = frame.num_points
    return anno


def in_range(boxes: NDArray[np.floating], limits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(K,) True where the centre of a box lies in ``limits`` in x and y."""
    return ((boxes[:, :2] >= limits[:2]) & (boxes[:, :2] < limits[3:5])).all(axis=1)


def write_kitti_label(anno: Anno, folder: Path) -> None:
    """Write detections as ``<frame_id>.txt`` in KITTI's label format."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k, name in enumerate(anno["name"]):
        length, height, width = anno["dimensions"][k]
        numbers = (*anno["bbox"][k], height, width, length, *anno["location"][k], anno["rotation_y"][k])
        tail = " ".join(f"{number:.4f}" for number in (*numbers, anno["score"][k]))
        rows.append(f"{name} -1 -1 {anno['alpha'][k]:.4f} {tail}\n")
    (folder / f"{anno['frame_id']}.txt").write_text("".join(rows))


def _wrap(angle: NDArray[np.floating]) -> NDArray[np.floating]:
    return angle - 2 * np.pi * np.floor(angle / (2 * np.pi) + 0.5)
