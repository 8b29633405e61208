"""Entries of KITTI's info files: what a frame must have, and what its boxes can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcdet_freeze.datasets.boxes import box_fault
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.kitti.labels import DONT_CARE
from pcdet_freeze.datasets.packed.kinds import Kind, Value, list_of_frames
from pcdet_freeze.errors import DataError

AGAIN = "write the info files anew with `pcdet-freeze prepare kitti`"
_BROKEN = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)
_LONGEST = 100
"""characters of a frame id in a column, which has as many for each frame"""


def frame_id(info: Any) -> str | None:
    """The frame that an entry is about; None where it does not say."""
    cloud = info.get("point_cloud") if isinstance(info, Mapping) else None
    found = cloud.get("lidar_idx") if isinstance(cloud, Mapping) else None
    return str(found) if isinstance(found, str | int | np.integer) else None


def has_boxes(info: Any) -> bool:
    """Whether the frame of an entry is labelled with boxes."""
    return isinstance(info, Mapping) and "annos" in info


def has_scores(annos: Mapping[str, Any]) -> bool:
    """Whether a label has a score; those of people have none, which files write as -1."""
    score = annos.get("score")
    return isinstance(score, np.ndarray) and score.dtype.kind == "f" and bool((score >= 0).any())


def calibration_of(info: Any, frame: str) -> tuple[Calibration, np.ndarray]:
    """Calibration and image_shape (2,) of an entry, zeros without an image; DataError names the frame."""
    if frame_id(info) is None:
        raise DataError(
            f"{frame}: an entry of an info file is a dict with point_cloud.lidar_idx; got "
            f"{type(info).__name__}; {AGAIN}"
        )
    try:
        calib = Calibration.from_info(info["calib"])
        given = info["image"]["image_shape"]
        with np.errstate(all="ignore"):
            shape = np.zeros(2, np.int32) if given is None else np.asarray(given, np.int32)
        if shape.shape != (2,) or (shape.min() <= 0 and given is not None):
            raise ValueError(f"image_shape must be [height, width]; got {shape}")
    except _BROKEN as error:
        raise DataError(f"frame {frame}: its info lacks calib or image_shape ({error}); {AGAIN}") from error
    if fault := calib.fault():
        raise DataError(f"frame {frame}: the calib of its info: {fault}")
    return calib, shape


def _columns(info: Any) -> Mapping[str, Value]:
    """frame (empty where the entry does not say), labelled, annotated (its annos are a dict), scored."""
    annos = info["annos"] if has_boxes(info) else None
    return {
        "frame": (frame_id(info) or "")[:_LONGEST],
        "labelled": has_boxes(info),
        "annotated": isinstance(annos, dict),
        "scored": isinstance(annos, dict) and has_scores(annos),
    }


KITTI_INFOS = Kind(f"{__name__}:KITTI_INFOS", 1, list_of_frames, _columns)


def camera_boxes(annos: Any, frame: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """name (K,), location (K, 3), dimensions (K, 3), rotation_y (K,) without the regions DontCare.

    Raises DataError naming the frame: a key that is missing, shapes that do not fit, an impossible box.
    """
    try:
        names = np.asarray(annos["name"], None if len(annos["name"]) else str)
        columns = [np.asarray(annos[key]) for key in ("location", "dimensions", "rotation_y")]
        shapes = [(len(names), 3), (len(names), 3), (len(names),)]
        if names.ndim != 1 or (len(names) and names.dtype.kind != "U"):
            raise ValueError(f"name must be a list of class names; got shape {names.shape}, {names.dtype}")
        if any(len(names) and column.shape != shape for column, shape in zip(columns, shapes, strict=True)):
            raise ValueError(f"{len(names)} names, but shapes {', '.join(str(c.shape) for c in columns)}")
        real = names != DONT_CARE
        location, dimensions, rotation_y = (c.reshape(s)[real] for c, s in zip(columns, shapes, strict=True))
        fault = box_fault(location, dimensions, rotation_y)
    except _BROKEN as error:
        raise DataError(f"frame {frame}: the annos of its info are broken ({error}); {AGAIN}") from error
    if fault:
        raise DataError(f"frame {frame}: the annos of its info: {fault}. Correct its label file, and {AGAIN}")
    return names[real], location, dimensions, rotation_y
