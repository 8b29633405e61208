"""Files of the processed Waymo data: lists of segments, infos of a segment, points of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.boxes import box_fault
from pcdet_freeze.datasets.file_formats.files import read_npy
from pcdet_freeze.datasets.file_formats.info_files import read_frame_ids
from pcdet_freeze.datasets.frames import check_points
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.waymo.settings import POINT_COLUMNS
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside

Info = dict[str, Any]
UNKNOWN = "unknown"
"""name of labels without a class"""
CAMERA = "_with_camera_labels"
NO_FLAG = -1.0
"""of a point outside of the no-label zones"""
_INTENSITY = 3
_BROKEN = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)


def segment_names(root: Path, split: str, tag: str) -> list[str]:
    """Names of the segments in ``ImageSets/<split>.txt``, without the suffix of the raw file.

    ``tag``: PROCESSED_DATA_TAG, the folder of the segments, for the error.
    """
    path = inside(root / "ImageSets", f"{split}.txt", "DATA_SPLIT")
    try:
        lines = read_frame_ids(path)
    except DataError as error:
        raise DataError(
            f"{error}. Set DATA_CONFIG.DATA_PATH to the folder that holds ImageSets/ and the segments in "
            f"{tag}/ (DATA_CONFIG.PROCESSED_DATA_TAG)"
        ) from error
    return list(dict.fromkeys(line.removesuffix(".tfrecord") for line in lines))


def info_path(folder: Path, segment: str) -> Path | None:
    """The info file of a segment below ``folder``; None where the segment was not prepared.

    Versions of Waymo's files differ in their names: with and without ``training_``, ``_with_camera_labels``.
    """
    names = [segment, *(f"{split}_{segment}" for split in ("training", "validation", "testing"))]
    for name in (*names, segment.replace(CAMERA, "")):
        path = inside(folder, f"{name}/{name}.pkl", "a segment of ImageSets")
        if timed(path, path.is_file):
            return path
    return None


def points_path(folder: Path, info: Any) -> Path:
    """The point file of a frame; DataError where its info does not say which."""
    try:
        cloud = info["point_cloud"]
        name, number = cloud["lidar_sequence"], int(cloud["sample_idx"])
    except _BROKEN as error:
        raise DataError(
            f"an info must hold point_cloud.lidar_sequence and .sample_idx; got {str(info)[:80]} ({error}). "
            "Prepare the segment again"
        ) from error
    return inside(folder, f"{name}/{number:04d}.npy", "a segment of an info")


def read_points(path: Path, all_zones: bool, tanh: Sequence[int] | None) -> np.ndarray:
    """Points (N, 5) float32 x, y, z, intensity, elongation of a frame.

    Args:
        path: (N, 6) or (N, 7) array: the five columns, then -1 for points outside of no-label zones.
        all_zones: keep the points in no-label zones.
        tanh: columns of which the tanh is taken, None: the intensity, which has no upper bound in the files.
    """
    raw = read_npy(path)
    if raw.ndim != 2 or raw.shape[1] <= POINT_COLUMNS or raw.dtype.kind != "f":
        raise DataError(
            f"{path}: a frame is an array (N, 6) of x, y, z, intensity, elongation, no-label zone; got "
            f"{raw.dtype} of shape {raw.shape}"
        )
    if not all_zones:
        raw = raw[raw[:, POINT_COLUMNS] == NO_FLAG]
    points = raw[:, :POINT_COLUMNS].astype(np.float32)
    for column in (_INTENSITY,) if tanh is None else tanh:
        points[:, column] = np.tanh(points[:, column])
    return check_points(points, path)


def boxes_of(info: Any, frame: str) -> dict[str, np.ndarray] | None:
    """Labels of a frame but for those without a class; None where it has none.

    Keys: name (K,), boxes (K, 7 or 9) float64 in the vehicle's frame, num_points (K,), difficulty (K,).
    Raises DataError naming the frame.
    """
    annos = info.get("annos") if isinstance(info, dict) else None
    if annos is None:
        return None
    try:
        names = np.asarray(annos["name"], None if len(annos["name"]) else str)
        boxes = np.asarray(annos["gt_boxes_lidar"], np.float64)
        counts = np.asarray(annos["num_points_in_gt"])
        levels = np.asarray(annos.get("difficulty", np.zeros(len(names), np.int64)))
        shapes = [names.shape, boxes.shape[:1], counts.shape, levels.shape]
        if names.ndim != 1 or boxes.ndim != 2 or boxes.shape[1] < 7 or len(set(shapes)) > 1:
            raise ValueError(f"shapes {', '.join(map(str, (*shapes, boxes.shape)))}")
        if len(names) and (names.dtype.kind != "U" or counts.dtype.kind not in "iu"):
            raise ValueError(f"types {names.dtype} of name, {counts.dtype} of num_points_in_gt")
    except _BROKEN as error:
        raise DataError(
            f"frame {frame}: the annos of its info must hold name, gt_boxes_lidar and num_points_in_gt of "
            f"one length ({error}). Prepare the segment again"
        ) from error
    if fault := box_fault(boxes[:, :3], boxes[:, 3:6], boxes[:, 6]):
        raise DataError(f"frame {frame}: the annos of its info: {fault}")
    known = names != UNKNOWN
    return {
        "name": names[known],
        "boxes": boxes[known],
        "num_points": counts[known],
        "difficulty": levels[known],
    }
