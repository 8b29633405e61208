"""Points of a frame: the annotated sweep and those before it, in its frame, with their age."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.poses import Pose
from pcdet_freeze.datasets.boxes import box_fault
from pcdet_freeze.datasets.file_formats.files import read_bin
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside

Info = Mapping[str, Any]
AGAIN = "write the info files anew with `pcdet-freeze prepare nuscenes`"
FILE_COLUMNS = 5
"""x, y, z, intensity, ring"""
VEHICLE = 1.0
"""metres from the sensor, along x and y, in which points of older sweeps are those of the own vehicle"""
X_FORWARD = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""columns: forward, left and up in the frame of the sensor, whose x is right and y forward"""
_BROKEN = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)


def token_of(info: Any) -> str | None:
    """Token of the sample of an info; None where it has none."""
    found = info.get("token") if isinstance(info, Mapping) else None
    return found if isinstance(found, str) and found else None


def read_points(root: Path, info: Info, max_sweeps: int) -> tuple[np.ndarray, int]:
    """Points (N, 5) float32 x, y, z, intensity, seconds since they were measured, in the sensor's frame.

    The first points are those of the annotated sweep, in the order of its file; their number is returned too.
    Raises DataError: a file that is missing or broken, an info without its keys.
    """
    newest = _read(root, info, "lidar_path")
    newest[:, 4] = 0.0
    sweeps = info.get("sweeps")
    if max_sweeps > 1 and (not isinstance(sweeps, list) or len(sweeps) < max_sweeps - 1):
        had = len(sweeps) if isinstance(sweeps, list) else 0
        raise DataError(
            f"frame {token_of(info)}: MAX_SWEEPS: {max_sweeps} needs {max_sweeps - 1} entries of `sweeps` in "
            f"its info; it has {had}. Set MAX_SWEEPS: {had + 1}, or {AGAIN}"
        )
    older = [_older(root, sweep, str(token_of(info))) for sweep in (sweeps or [])[: max_sweeps - 1]]
    return np.concatenate([newest, *older]), len(newest)


def _read(root: Path, info: Info, key: str) -> np.ndarray:
    path = info.get(key)
    if not isinstance(path, str) or not path:
        raise DataError(f"frame {token_of(info)}: its info must name a file as {key}; got {path!r}. {AGAIN}")
    return read_bin(inside(root, path, "a sweep's file"), FILE_COLUMNS)


def _older(root: Path, sweep: Any, frame: str) -> np.ndarray:
    """Points of an older sweep without those of the own vehicle, in the frame of the annotated one."""
    try:
        matrix, lag = sweep["transform_matrix"], float(sweep["time_lag"])
        matrix = None if matrix is None else np.asarray(matrix, np.float64)
        if matrix is not None and (matrix.shape != (4, 4) or not np.isfinite(matrix).all()):
            raise ValueError(f"transform_matrix must be (4, 4) and finite; got {matrix.shape}")
        if not np.isfinite(lag):
            raise ValueError(f"time_lag must be finite; got {lag}")
    except _BROKEN as error:
        raise DataError(f"frame {frame}: an entry of `sweeps` is broken ({error!r}); {AGAIN}") from error
    points = _read(root, sweep, "lidar_path")
    points = points[(np.abs(points[:, :2]) >= VEHICLE).any(axis=1)]
    if matrix is not None:
        points[:, :3] = points[:, :3] @ matrix[:3, :3].T.astype(np.float32) + matrix[:3, 3].astype(np.float32)
    points[:, 4] = lag
    return points


def has_boxes(info: Any) -> bool:
    """Whether an info has labels."""
    return isinstance(info, Mapping) and "gt_boxes" in info


def read_boxes(info: Info) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """gt_boxes (K, 9) float32, gt_names (K,) and num_lidar_pts (K,) of an info; DataError where broken."""
    frame = token_of(info)
    try:
        boxes = np.asarray(info["gt_boxes"], np.float32).reshape(-1, 9)
        names = np.asarray(info["gt_names"]).astype(str).reshape(-1)
        points = np.asarray(info["num_lidar_pts"]).astype(np.int64).reshape(-1)
        if not len(boxes) == len(names) == len(points):
            raise ValueError(f"{len(boxes)} gt_boxes, {len(names)} gt_names, {len(points)} num_lidar_pts")
        fault = box_fault(boxes[:, :3], boxes[:, 3:6], boxes[:, 6])
    except _BROKEN as error:
        raise DataError(f"frame {frame}: the labels of its info are broken ({error!r}); {AGAIN}") from error
    if fault:
        raise DataError(f"frame {frame}: the labels of its info: {fault}; {AGAIN}")
    return boxes, names, points


def global_pose(info: Info, x_forward: bool) -> Pose:
    """Where the frame of the points stands in the global frame; DataError for an info without poses."""
    try:
        found = np.linalg.inv(
            np.asarray(info["ref_from_car"], np.float64) @ np.asarray(info["car_from_global"], np.float64)
        )
        if found.shape != (4, 4) or not np.isfinite(found).all():
            raise ValueError("the poses must be (4, 4) and finite")
    except (*_BROKEN, np.linalg.LinAlgError) as error:
        raise DataError(
            f"frame {token_of(info)}: ref_from_car and car_from_global of its info are broken ({error!r}); "
            f"{AGAIN}"
        ) from error
    return Pose(found[:3, :3] @ (X_FORWARD if x_forward else np.eye(3)), found[:3, 3])


def turn_points(points: np.ndarray) -> np.ndarray:
    """Points (N, 3+) of the sensor's frame in the one with x forward, y left."""
    turned = points.copy()
    turned[:, 0], turned[:, 1] = points[:, 1], -points[:, 0]
    return turned


def turn_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes (K, 7) or (K, 9) of the sensor's frame in the one with x forward, y left."""
    turned = turn_points(boxes)
    turned[:, 6] = boxes[:, 6] - np.float32(np.pi / 2)
    if boxes.shape[1] > 7:
        turned[:, 7], turned[:, 8] = boxes[:, 8], -boxes[:, 7]
    return turned
