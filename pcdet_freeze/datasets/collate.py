"""Samples -> batch_dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pcdet_freeze.datasets.frames import IGNORE, LABEL_KEYS
from pcdet_freeze.datasets.labels.labelled_classes import LABELLED_CLASSES, fill_labelled
from pcdet_freeze.datasets.registry import Sample

_BATCH_COLUMN = ("points", "voxel_coords")
_CONCATENATED = ("voxels", "voxel_num_points", "point_labels")
_LISTS = ("calib", "metadata")


def collate(samples: Sequence[Sample], labels: Sequence[str] = ()) -> dict[str, Any]:
    """One batch of numpy arrays (``datasets/template.py`` lists the keys).

    ``points`` and ``voxel_coords`` get a first column with the sample's number in the batch; ``gt_boxes``
    are padded with zero rows (at least one); ``skipped_frames`` of all samples become one list, as does
    ``bad_data``, which only samples after bad ones have.

    Samples may be partially labelled: a label key that is absent or None means that the sample does not have
    this label. ``has_gt_boxes``, ``has_point_labels``, ``has_lane_map`` and ``has_<key>`` of further
    ``labels``, (B,) bool, say which samples have it. For a sample without it the batch holds no boxes, label
    255 (ignore) for its points and cells, and zeros for a further label, which has one shape in all frames.
    The batch has no key for a label that none of its samples has. ``labelled_classes``, (B, C) bool, is there
    if a sample has it.
    """
    known = dict.fromkeys((*LABEL_KEYS, *labels))
    batch: dict[str, Any] = {f"has_{key}": _has(key, samples) for key in known}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        if key in known and not batch[f"has_{key}"].any():
            continue
        if key == "bad_data":
            values: list[Any] = [sample.get(key, []) for sample in samples]
        elif key == LABELLED_CLASSES:
            values = fill_labelled([sample.get(key) for sample in samples])
        else:
            values = _filled(key, samples) if key in known else [sample[key] for sample in samples]
        batch[key] = _join(key, values)
    batch["batch_size"] = len(samples)
    return batch


def last_sample(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of another size than ``batch``: two or three copies of its last sample."""
    last = int(batch["batch_size"]) - 1
    copies = 3 if batch["batch_size"] == 2 else 2
    of_points = batch["points"][:, 0] == last if "points" in batch else None
    of_voxels = batch["voxel_coords"][:, 0] == last if "voxel_coords" in batch else None
    found = {}
    for key, value in batch.items():
        if key == "batch_size":
            found[key] = copies
        elif not hasattr(value, "shape"):
            found[key] = value[last : last + 1] * copies if key in _LISTS else value
        elif key in ("points", "point_labels"):
            found[key] = _repeated(value[of_points], copies, key in _BATCH_COLUMN)
        elif key in ("voxels", "voxel_coords", "voxel_num_points"):
            found[key] = _repeated(value[of_voxels], copies, key in _BATCH_COLUMN)
        else:
            found[key] = _repeated(value[last : last + 1], copies, False)
    return found


def _repeated(rows: Any, copies: int, numbered: bool) -> Any:
    """Return ``copies`` copies of ``rows``; if ``numbered``, column 0 is the number of the copy."""
    parts: list[Any] = [rows.copy() if isinstance(rows, np.ndarray) else rows.clone() for _ in range(copies)]
    for number, part in enumerate(parts if numbered else ()):
        part[:, 0] = number
    return np.concatenate(parts) if isinstance(rows, np.ndarray) else torch.cat(parts)


def _has(key: str, samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.get(key) is not None for sample in samples])


def _filled(key: str, samples: Sequence[Sample]) -> list[np.ndarray]:
    """Return the label of each sample, with the ignore value in samples without it; one must have it."""
    like = np.asarray(next(sample[key] for sample in samples if sample.get(key) is not None))
    return [
        _nothing(key, like, len(sample["points"])) if sample.get(key) is None else sample[key]
        for sample in samples
    ]


def _nothing(key: str, like: np.ndarray, points: int) -> np.ndarray:
    """Return the fill value of the label ``key`` for a frame without it; ``like``: that of another one."""
    if key not in LABEL_KEYS:
        return np.zeros_like(like)
    rows = {"gt_boxes": 0, "point_labels": points, "lane_map": len(like)}[key]
    return np.full((rows, *like.shape[1:]), IGNORE, like.dtype)


def _join(key: str, values: list[Any]) -> Any:
    if key in ("skipped_frames", "bad_data"):
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
