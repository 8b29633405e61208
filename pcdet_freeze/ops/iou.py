"""Intersection over union of rotated boxes, in BEV and in 3D.

Boxes are [x, y, z, dx, dy, dz, heading] in the LiDAR frame (metres, radians, counter-clockwise). All
arithmetic is in float64; the result has the type, device and floating dtype of the first argument. CPU arrays
and tensors use numba, CUDA tensors use torch; both implement the formula of `_rotated_overlap.py`. The IoU is
not differentiable.

An invalid box (NaN, infinity, a size that is not positive) has IoU 0 with every box, including itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pcdet_freeze.errors import DataError
from pcdet_freeze.ops._arrays import Array, check_columns, check_same_kind, floating_like, to_float64
from pcdet_freeze.ops._rotated_overlap import overlap_matrix, overlap_pairs, prepare
from pcdet_freeze.ops._rotated_overlap_torch import overlap_matrix_torch, pair_overlap_torch, prepare_torch
from pcdet_freeze.utils.devices import is_accelerator

BEV_COLUMNS = [0, 1, 3, 4, 6]


def rotated_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection areas of rectangles (N, 5), (M, 5) [x, y, dx, dy, angle] -> (N, M) float64, numpy only."""
    check_columns("a", a, 5)
    check_columns("b", b, 5)
    return np.asarray(overlap_matrix(prepare(to_float64(a, 5)), prepare(to_float64(b, 5))))


def boxes_iou_bev(boxes_a: Array, boxes_b: Array) -> Array:
    """BEV IoU of rotated boxes: (N, 7), (M, 7) -> (N, M)."""
    _check(boxes_a, boxes_b)
    inter, a, b = _bev_overlap(boxes_a, boxes_b)
    return floating_like(_ratio(inter, _area(a)[:, None], _area(b)[None]), boxes_a)


def boxes_iou3d(boxes_a: Array, boxes_b: Array) -> Array:
    """3D IoU of rotated boxes: (N, 7), (M, 7) -> (N, M)."""
    _check(boxes_a, boxes_b)
    inter, a, b = _bev_overlap(boxes_a, boxes_b)
    height = _shared_height(a[:, None], b[None])
    volume_a, volume_b = _area(a) * a[:, 5], _area(b) * b[:, 5]
    return floating_like(_ratio(inter * height, volume_a[:, None], volume_b[None]), boxes_a)


def boxes_aligned_iou3d(boxes_a: Array, boxes_b: Array) -> Array:
    """3D IoU of pairs of rotated boxes: (N, 7), (N, 7) -> (N,)."""
    _check(boxes_a, boxes_b)
    if len(boxes_a) != len(boxes_b):
        raise DataError(
            f"aligned IoU needs two equally long lists of boxes; got {len(boxes_a)} and {len(boxes_b)}. "
            "Use boxes_iou3d for all pairs."
        )
    if isinstance(boxes_a, torch.Tensor) and is_accelerator(boxes_a):
        a, b = boxes_a.detach()[:, :7].double(), boxes_b.detach()[:, :7].double()
        inter = pair_overlap_torch(prepare_torch(a[:, BEV_COLUMNS]), prepare_torch(b[:, BEV_COLUMNS]))
    else:
        a, b = (torch.from_numpy(to_float64(boxes, 7)) for boxes in (boxes_a, boxes_b))
        flat_a, flat_b = (to_float64(boxes[:, BEV_COLUMNS]) for boxes in (a, b))
        inter = torch.from_numpy(overlap_pairs(prepare(flat_a), prepare(flat_b)))
    height = _shared_height(a, b)
    return floating_like(_ratio(inter * height, _area(a) * a[:, 5], _area(b) * b[:, 5]), boxes_a)


def _check(boxes_a: Any, boxes_b: Any) -> None:
    check_columns("boxes_a", boxes_a, 7)
    check_columns("boxes_b", boxes_b, 7)
    check_same_kind("boxes_a", boxes_a, "boxes_b", boxes_b)


def _bev_overlap(boxes_a: Array, boxes_b: Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Intersection areas (N, M), and both boxes as float64 tensors on one device."""
    if isinstance(boxes_a, torch.Tensor) and is_accelerator(boxes_a):
        a, b = boxes_a.detach()[:, :7].double(), boxes_b.detach()[:, :7].double()
        flat_a, flat_b = prepare_torch(a[:, BEV_COLUMNS]), prepare_torch(b[:, BEV_COLUMNS])
        return overlap_matrix_torch(flat_a, flat_b), a, b
    a, b = (torch.from_numpy(to_float64(boxes, 7)) for boxes in (boxes_a, boxes_b))
    inter = rotated_intersection(a[:, BEV_COLUMNS].numpy(), b[:, BEV_COLUMNS].numpy())
    return torch.from_numpy(inter), a, b


def _area(boxes: torch.Tensor) -> torch.Tensor:
    return boxes[:, 3] * boxes[:, 4]


def _shared_height(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    top = torch.minimum(a[..., 2] + a[..., 5] / 2, b[..., 2] + b[..., 5] / 2)
    bottom = torch.maximum(a[..., 2] - a[..., 5] / 2, b[..., 2] - b[..., 5] / 2)
    return (top - bottom).clamp(min=0)


def _ratio(inter: torch.Tensor, size_a: torch.Tensor, size_b: torch.Tensor) -> torch.Tensor:
    """inter / union; 0 for disjoint or invalid boxes."""
    return torch.where(inter > 0, inter / (size_a + size_b - inter), 0.0).nan_to_num_(0.0, 0.0, 0.0)
