"""Steps on one sample: select points or boxes with their labels, check labels and points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.datasets.boxes import FARTHEST, box_fault
from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.errors import DataError

IGNORE = 255
"""Label of a point without a class, and of a lane-map cell without a label."""

POINT_KEYS = ("points", "point_labels")
BOX_KEYS = ("gt_boxes", "gt_names")
LABEL_KEYS = ("gt_boxes", "point_labels", "lane_map")
"""Labels of a frame; each of them may be missing in some frames."""


def keep_points(sample: Sample, which: np.ndarray) -> None:
    """Keep the points that ``which`` (mask or indices) picks, and their labels, in that order."""
    _keep(sample, POINT_KEYS, which)


def keep_boxes(sample: Sample, which: np.ndarray) -> None:
    """Keep the ground-truth boxes that ``which`` (mask or indices) picks, and their names."""
    _keep(sample, BOX_KEYS, which)


def _keep(sample: Sample, keys: tuple[str, ...], which: np.ndarray) -> None:
    index, given = np.asarray(which), None
    if index.dtype == bool:
        index, given = index.nonzero()[0], len(index)  # once for all keys
    for key in keys:
        if sample.get(key) is not None:
            if given not in (None, len(sample[key])):  # take() would cut the longer one
                raise DataError(f"{key} must have one row for each of {given}; got {len(sample[key])}")
            sample[key] = sample[key].take(index, axis=0)  # faster than an index of the array


def without_none_labels(sample: Sample, labels: Sequence[str] = ()) -> Sample:
    """``sample`` without the label keys (LABEL_KEYS and ``labels``) whose value is None.

    None means that the frame does not have the label, as an absent key does.
    """
    known = {*LABEL_KEYS, *labels}
    return {key: value for key, value in sample.items() if value is not None or key not in known}


def check_labels(sample: Sample, classes: int, lane_shape: tuple[int, int] | None) -> Sample:
    """Return ``sample``; raise DataError if point labels or lane map do not match points and config.

    Args:
        classes: number of semantic classes; 0: not known.
        lane_shape: (H, W) of every lane map; None: any.
    """
    where = f"frame {sample.get('frame_id')}"
    boxes = sample.get("gt_boxes")
    if boxes is not None and len(boxes) and (fault := box_fault(boxes[:, :3], boxes[:, 3:6], boxes[:, 6])):
        raise DataError(f"{where}: gt_boxes: {fault}")
    names = sample.get("gt_names")
    if boxes is not None and names is not None and len(names) != len(boxes):
        raise DataError(
            f"{where}: gt_names must hold one name for each of the {len(boxes)} boxes of gt_boxes; got "
            f"{len(names)}. Is the label file cut off, or was one of the two filtered?"
        )
    if (labels := sample.get("point_labels")) is not None:
        if labels.shape != (len(sample["points"]),):
            raise DataError(
                f"{where}: point_labels must hold one label for each of the {len(sample['points'])} points; "
                f"got shape {labels.shape}. Is the label file that of another frame?"
            )
        wrong = np.unique(labels[(labels != IGNORE) & ((labels < 0) | (labels >= classes))])
        if classes and len(wrong):
            raise DataError(
                f"{where}: point_labels must be 0..{classes - 1} ({classes} semantic classes) or {IGNORE} "
                f"(ignore); got {', '.join(map(str, wrong[:8].tolist()))}. Map them with LABEL_MAP"
            )
    if lane_shape is not None and (lanes := sample.get("lane_map")) is not None and lanes.shape != lane_shape:
        raise DataError(
            f"{where}: a lane map must have {lane_shape[0]} rows (y) and {lane_shape[1]} columns (x), "
            f"POINT_CLOUD_RANGE by LANE.CELL_SIZE; got shape {lanes.shape}"
        )
    return sample


def check_points(points: np.ndarray, source: Any) -> np.ndarray:
    """Return ``points`` (N, C) if they can be those of a sensor, else raise DataError that says why not.

    All columns must be finite, and x, y, z within 10 km.
    """
    # one pass for almost all files: NaN compares as False
    if (np.abs(points) <= FARTHEST).all():
        return points
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{source}: points must be finite in every column (intensity too); {int((~finite).sum())} of "
            f"{len(points)} points hold NaN or inf. Repair the file or take the frame out of the split"
        )
    far = (np.abs(points[:, :3]) > FARTHEST).any(axis=1)
    if far.any():
        raise DataError(
            f"{source}: points must lie within {FARTHEST:g} m of the sensor; {int(far.sum())} of "
            f"{len(points)} do not, the first at {', '.join(f'{value:g}' for value in points[far][0, :3])}. "
            "Is the file of another layout, or in map coordinates or millimetres?"
        )
    return points
