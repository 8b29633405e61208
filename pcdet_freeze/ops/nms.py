"""Greedy non-maximum suppression of rotated boxes, in float64, the same kept sets on CPU and CUDA.

The boxes are walked by falling score (equal scores: lower index first; a NaN score comes last). A box is kept
unless its BEV IoU with a box kept before it is above the threshold, strictly.

On the CPU each box meets only the kept boxes of its neighbourhood: they are filed in a grid of square cells,
and an exact area is computed only where circles and sizes leave the question open. On CUDA a block of
boxes meets all kept ones at once, and what survives is walked on the host by its few overlapping pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pcdet_freeze.errors import DataError
from pcdet_freeze.ops._arrays import Array, check_columns, check_same_kind, to_float64
from pcdet_freeze.ops._overlap import greedy, prepare, walk
from pcdet_freeze.ops._overlap_torch import near_torch, overlap_torch, prepare_torch
from pcdet_freeze.ops.iou import BEV_COLUMNS

_BLOCK = 1024  # boxes that the torch path judges at once


def nms(boxes: Array, scores: Array, thresh: float, pre_maxsize: int | None = None) -> Array:
    """Indices of the boxes that rotated NMS keeps, by falling score.

    Args:
        boxes: (N, 7) [x, y, z, dx, dy, dz, heading], metres and radians; z and dz play no part.
        scores: (N,).
        thresh: BEV IoU above which the lower score is dropped.
        pre_maxsize: look at so many of the best scores only.

    Returns:
        (K,) int64, numpy or torch as ``boxes``.

    Raises:
        DataError: wrong shapes, kinds that do not match, a threshold below 0 or NaN.
    """
    _check(boxes, scores, thresh, pre_maxsize)
    if isinstance(boxes, torch.Tensor) and boxes.is_cuda:
        return nms_torch(boxes, scores, float(thresh), pre_maxsize)
    order = np.argsort(-_no_nan(scores), kind="stable")[:pre_maxsize]
    flat = to_float64(to_float64(boxes, 7)[order][:, BEV_COLUMNS])
    kept = order[greedy(prepare(flat), float(thresh))]
    return torch.from_numpy(kept) if isinstance(boxes, torch.Tensor) else kept


def nms_normal(boxes: Array, scores: Array, thresh: float, pre_maxsize: int | None = None) -> Array:
    """``nms`` that takes every box as if its heading were 0; arguments and result as there."""
    _check(boxes, scores, thresh, pre_maxsize)
    upright: Array = boxes.clone() if isinstance(boxes, torch.Tensor) else boxes.copy()
    upright[:, 6] = 0
    return nms(upright, scores, thresh, pre_maxsize)


def _check(boxes: Any, scores: Any, thresh: float, pre_maxsize: int | None) -> None:
    check_columns("boxes", boxes, 7)
    check_same_kind("boxes", boxes, "scores", scores)
    if scores.ndim != 1 or len(scores) != len(boxes):
        raise DataError(
            f"scores must have shape (N,), one a box; got {tuple(scores.shape)} for {len(boxes)} boxes"
        )
    if not thresh >= 0:
        raise DataError(f"thresh must be at least 0; got {thresh!r}: an IoU is never below 0")
    if pre_maxsize is not None and pre_maxsize < 0:
        raise DataError(f"pre_maxsize must be None or at least 0; got {pre_maxsize!r}")


def _no_nan(scores: np.ndarray | torch.Tensor) -> np.ndarray:
    plain = scores.detach().cpu().double().numpy() if isinstance(scores, torch.Tensor) else scores
    return np.nan_to_num(plain.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def nms_torch(
    boxes: torch.Tensor, scores: torch.Tensor, thresh: float, pre_maxsize: int | None = None
) -> torch.Tensor:
    """``nms`` in plain torch, for tensors on any device; CUDA tensors come here by themselves."""
    ranked = scores.detach().double().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    order = ranked.sort(descending=True, stable=True).indices[:pre_maxsize]
    rows = prepare_torch(boxes.detach()[order][:, BEV_COLUMNS].double())
    kept = torch.empty(0, dtype=torch.int64, device=rows.device)
    for begin in range(0, len(rows), _BLOCK):
        open_ = torch.arange(begin, min(begin + _BLOCK, len(rows)), device=rows.device)
        for rivals in kept.split(_BLOCK):
            beaten, _ = _pairs_above(rows[open_], rows[rivals], thresh)
            alive = torch.ones_like(open_, dtype=torch.bool)
            alive[beaten] = False
            open_ = open_[alive]
        later, earlier = _pairs_above(rows[open_], rows[open_], thresh, below_diagonal=True)
        stays = walk(len(open_), later.cpu().numpy(), earlier.cpu().numpy())
        kept = torch.cat([kept, open_[torch.from_numpy(stays).to(open_.device)]])
    return order[kept]


def _pairs_above(
    a: torch.Tensor, b: torch.Tensor, thresh: float, below_diagonal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-major indices into a and b of the pairs with IoU > thresh."""
    near = near_torch(a, b)
    n, m = (near.tril(-1) if below_diagonal else near).nonzero(as_tuple=True)
    inter = overlap_torch(a[n], b[m])
    above = inter / (a[n, 7] + b[m, 7] - inter) > thresh
    return n[above], m[above]
