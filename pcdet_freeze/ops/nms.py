"""Greedy non-maximum suppression of rotated boxes in float64, with equal results on CPU and CUDA.

Boxes are processed in descending order of score (equal scores: lower index first; NaN scores last). A box is
kept unless its BEV IoU with an already kept box is strictly above the threshold.

On the CPU, kept boxes are stored in a grid of square cells, each box is compared with the kept boxes of its
neighbourhood only, and the exact area is computed only if circles and sizes do not decide. On CUDA, a block
of boxes is compared with all kept boxes at once, and the remaining overlapping pairs are processed on the
host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pcdet_freeze.errors import DataError
from pcdet_freeze.ops._arrays import Array, check_columns, check_same_kind, to_float64
from pcdet_freeze.ops._rotated_overlap import greedy, prepare, walk
from pcdet_freeze.ops._rotated_overlap_torch import near_torch, overlap_torch, prepare_torch
from pcdet_freeze.ops.iou import BEV_COLUMNS
from pcdet_freeze.utils.devices import is_accelerator

_BLOCK = 1024  # number of boxes that the torch path processes at once


def nms(boxes: Array, scores: Array, thresh: float, pre_maxsize: int | None = None) -> Array:
    """Indices of the boxes kept by rotated NMS, in descending order of score.

    Args:
        boxes: (N, 7) [x, y, z, dx, dy, dz, heading], metres and radians; z and dz are ignored.
        scores: (N,).
        thresh: BEV IoU above which the box with the lower score is removed.
        pre_maxsize: maximum number of boxes with the highest scores to consider.

    Returns:
        (K,) int64 with the type of ``boxes``.

    Raises:
        DataError: wrong shapes, types that do not match, a threshold below 0 or NaN.
    """
    _check(boxes, scores, thresh, pre_maxsize)
    if isinstance(boxes, torch.Tensor) and is_accelerator(boxes):
        return nms_torch(boxes, scores, float(thresh), pre_maxsize)
    order = np.argsort(-_no_nan(scores), kind="stable")[:pre_maxsize]
    flat = to_float64(to_float64(boxes, 7)[order][:, BEV_COLUMNS])
    kept = order[greedy(prepare(flat), float(thresh))]
    return torch.from_numpy(kept) if isinstance(boxes, torch.Tensor) else kept


def nms_normal(boxes: Array, scores: Array, thresh: float, pre_maxsize: int | None = None) -> Array:
    """``nms`` of axis-aligned boxes: all headings are taken as 0. Arguments and result as in ``nms``."""
    _check(boxes, scores, thresh, pre_maxsize)
    upright: Array = boxes.clone() if isinstance(boxes, torch.Tensor) else boxes.copy()
    upright[:, 6] = 0
    return nms(upright, scores, thresh, pre_maxsize)


def _check(boxes: Any, scores: Any, thresh: float, pre_maxsize: int | None) -> None:
    check_columns("boxes", boxes, 7)
    check_same_kind("boxes", boxes, "scores", scores)
    if scores.ndim != 1 or len(scores) != len(boxes):
        raise DataError(
            f"scores must have shape (N,), one per box; got {tuple(scores.shape)} for {len(boxes)} boxes"
        )
    if not thresh >= 0:
        raise DataError(f"thresh must be at least 0; got {thresh!r}")
    if pre_maxsize is not None and pre_maxsize < 0:
        raise DataError(f"pre_maxsize must be None or at least 0; got {pre_maxsize!r}")


def _no_nan(scores: np.ndarray | torch.Tensor) -> np.ndarray:
    plain = scores.detach().cpu().double().numpy() if isinstance(scores, torch.Tensor) else scores
    return np.nan_to_num(plain.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def nms_torch(
    boxes: torch.Tensor, scores: torch.Tensor, thresh: float, pre_maxsize: int | None = None
) -> torch.Tensor:
    """``nms`` in plain torch, for tensors on any device; used for CUDA tensors."""
    ranked = scores.detach().double().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    order = ranked.sort(descending=True, stable=True).indices[:pre_maxsize]
    rows = prepare_torch(boxes.detach()[order][:, BEV_COLUMNS].double())
    kept = torch.empty(0, dtype=torch.int64, device=rows.device)
    for begin in range(0, len(rows), _BLOCK):
        open_ = torch.arange(begin, min(begin + _BLOCK, len(rows)), device=rows.device)
        for others in kept.split(_BLOCK):
            suppressed, _ = _pairs_above(rows[open_], rows[others], thresh)
            alive = torch.ones_like(open_, dtype=torch.bool)
            alive[suppressed] = False
            open_ = open_[alive]
        later, earlier = _pairs_above(rows[open_], rows[open_], thresh, below_diagonal=True)
        remaining = walk(len(open_), later.cpu().numpy(), earlier.cpu().numpy())
        kept = torch.cat([kept, open_[torch.from_numpy(remaining).to(open_.device)]])
    return order[kept]


def _pairs_above(
    a: torch.Tensor, b: torch.Tensor, thresh: float, below_diagonal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices into a and b of the pairs with IoU > thresh, in row-major order."""
    near = near_torch(a, b)
    n, m = (near.tril(-1) if below_diagonal else near).nonzero(as_tuple=True)
    inter = overlap_torch(a[n], b[m])
    above = inter / (a[n, 7] + b[m, 7] - inter) > thresh
    return n[above], m[above]
