"""Labels of points as further columns of ``points``, through OpenPCDet's augmentors and processors.

A step that transforms or selects whole rows carries the columns (flip, range mask, shuffle). Any other step
(gt_sampling, voxelization, a step of a fork) runs on the points without them; afterwards each row that is
still there, bit for bit, has its labels again, and a new row has the ignore label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pcdet_freeze.errors import DataError
from pcdet_freeze.integrations.openpcdet.tasks.registry import Labels

Step = Callable[..., dict[str, Any]]
WORLD = ("random_world_flip", "random_world_rotation", "random_world_scaling", "random_world_translation")
"""augmentors that transform the whole scene"""
LOCAL = (
    "random_local_translation", "random_local_rotation", "random_local_scaling",
    "random_world_frustum_dropout", "random_local_frustum_dropout",
)  # fmt: skip
CARRIES_COLUMNS = (
    *WORLD, *LOCAL, "mask_points_and_boxes_outside_range", "shuffle_points", "sample_points",
)  # fmt: skip
"""steps that change coordinates only, or select rows"""
_EXACT = 2**24  # integers up to here are exact in float32


def step_name(step: Any) -> str:
    """Name of an augmentor or processor: of its method, or of its class."""
    function = getattr(step, "func", step)
    return str(getattr(function, "__name__", type(step).__name__))


def label_columns(points: np.ndarray, frame: dict[str, Any], dataset: Any, labels: Labels) -> np.ndarray:
    """(N,) labels of ``points`` in the type of ``points``. Raises DataError if they do not fit."""
    found = frame.get(labels.key) if labels.read is None else labels.read(frame, dataset)
    if found is None:
        return np.full(len(points), labels.ignore, points.dtype)
    if isinstance(found, tuple):
        xyz, values = (np.asarray(part) for part in found)
        _check_count(labels, values, xyz, frame)
        return spread(values.astype(points.dtype), match_rows(xyz[:, :3], points[:, :3]), labels.ignore)
    values = np.asarray(found)
    _check_count(labels, values, points, frame)
    return values.astype(points.dtype)


def _check_count(labels: Labels, values: np.ndarray, points: np.ndarray, frame: dict[str, Any]) -> None:
    where = f"{labels.key} of frame {frame.get('frame_id')}"
    if values.shape != (len(points),):
        raise DataError(
            f"{where} must have one label a point, shape ({len(points)},), but has {values.shape}. If the "
            "data set drops points (FOV_POINTS_ONLY), return (xyz, labels) of all points."
        )
    if values.dtype.kind in "iu" and len(values) and np.abs(values.astype(np.int64)).max() > _EXACT:
        raise DataError(f"{where} must be at most {_EXACT} in absolute value, as float32 holds them exactly.")


def match_rows(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Index in ``known`` (M, C) of the first row that is equal to each row of ``asked`` (N, C); -1: none."""
    known, asked = (np.ascontiguousarray(rows, np.float32) + np.float32(0) for rows in (known, asked))
    if not len(known):
        return np.full(len(asked), -1, np.int64)
    hashes = _hashes(known)
    order = np.argsort(hashes, kind="stable")
    at = np.searchsorted(hashes[order], _hashes(asked)).clip(max=len(known) - 1)
    index = order[at]
    return np.where((known[index] == asked).all(axis=1), index, -1)


def _hashes(rows: np.ndarray) -> np.ndarray:
    """(N,) uint64 of float32 rows (N, C): sorting these is much faster than sorting rows."""
    mixed = np.zeros(len(rows), np.uint64)
    for column in rows.view(np.uint32).astype(np.uint64).T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def spread(values: np.ndarray, index: np.ndarray, ignore: float) -> np.ndarray:
    """``values[index]``, and ``ignore`` where the index is -1."""
    if not len(values):
        return np.full(len(index), ignore, values.dtype)
    return np.where(index >= 0, values[index], values.dtype.type(ignore))


class CarryColumns:
    """One augmentor or processor of OpenPCDet, called with points that have label columns at their end."""

    def __init__(self, step: Step, labels: Sequence[Labels]) -> None:
        self.step, self.labels = step, labels
        self.__name__ = step_name(step)

    def __call__(self, data_dict: dict[str, Any]) -> dict[str, Any]:
        points = data_dict.get("points")
        if points is None or not self.labels or self.__name__ in CARRIES_COLUMNS:
            return self.step(data_dict=data_dict)
        width = points.shape[1] - len(self.labels)
        # contiguous, as without the columns: the voxel generator reads the memory
        bare, columns = np.ascontiguousarray(points[:, :width]), points[:, width:]
        before = bare.copy()
        result = self.step(data_dict={**data_dict, "points": bare})
        after = result["points"]
        if after.shape == before.shape and np.array_equal(after, before):
            result["points"] = np.concatenate([after, columns], axis=1)
            return result
        index = match_rows(before, after[:, :width])
        if len(before) and not (index >= 0).any():
            raise DataError(
                f"{self.__name__} changed every point, so that the labels of points are lost. Add it to "
                "DATA_AUGMENTOR.DISABLE_AUG_LIST."
            )
        labelled = [self._after(labels, columns[:, k], index, result) for k, labels in enumerate(self.labels)]
        result["points"] = np.column_stack([after, *labelled]).astype(after.dtype, copy=False)
        return result

    def _after(
        self, labels: Labels, before: np.ndarray, index: np.ndarray, result: dict[str, Any]
    ) -> np.ndarray:
        """(N,) labels after the step, pasted points included."""
        after = spread(before, index, labels.ignore)
        new = np.flatnonzero(index < 0)
        if labels.pasted and len(new) and len(result.get("gt_boxes", ())):
            from pcdet_freeze.ops.boxes import points_in_boxes  # numba compiles it

            boxes = np.asarray(result["gt_boxes"])[:, :7]
            box = points_in_boxes(np.asarray(result["points"])[new, :3], boxes, margin=1e-2)
            names = [str(name) for name in result["gt_names"]]
            pasted = [labels.pasted.get(names[b], labels.ignore) if b >= 0 else labels.ignore for b in box]
            after[new] = np.asarray(pasted, after.dtype)
        return after
