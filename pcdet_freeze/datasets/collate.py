"""Samples -> batch_dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.datasets.registry import Sample

_BATCH_COLUMN = ("points", "voxel_coords")
_CONCATENATED = ("voxels", "voxel_num_points", "point_labels")
_LISTS = ("calib", "metadata")


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """One batch of numpy arrays (``datasets/template.py`` lists the keys).

    ``points`` and ``voxel_coords`` get a first column with the sample's number in the batch; ``gt_boxes``
    are padded with zero rows (at least one); ``skipped_frames`` of all samples become one list.
    """
    batch: dict[str, Any] = {}
    for key in samples[0]:
        batch[key] = _join(key, [sample[key] for sample in samples])
    batch["batch_size"] = len(samples)
    return batch


def _join(key: str, values: list[Any]) -> Any:
    if key == "skipped_frames":
        return [name for names in values for name in names]
    if key in _LISTS:
        return values
    if key in _BATCH_COLUMN:
        return np.concatenate([_with_batch_column(rows, b) for b, rows in enumerate(values)])
    if key in _CONCATENATED:
        return np.concatenate(values)
    if key == "gt_boxes":
        return _pad(values)
    return np.stack([np.asarray(value) for value in values])


def _with_batch_column(rows: np.ndarray, index: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=index)


def _pad(boxes: list[np.ndarray]) -> np.ndarray:
    most = max(1, *(len(rows) for rows in boxes))
    out = np.zeros((len(boxes), most, boxes[0].shape[1]), np.float32)
    for b, rows in enumerate(boxes):
        out[b, : len(rows)] = rows
    return out
