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
from pcdet_freeze.ops._arrays import Array, check_columns, check_same_kind, jit, to_float64
from pcdet_freeze.ops._overlap import near_torch, overlap, overlap_torch, prepare, prepare_torch, row
from pcdet_freeze.ops.iou import BEV_COLUMNS

_CELLS = 128  # the grid has at most so many cells a side
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
    kept = order[_greedy(prepare(flat), float(thresh))]
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


@jit
def _above(a, b, thresh):  # type: ignore[no-untyped-def]
    """IoU of two prepared rectangles > thresh; the area is computed only where it can matter."""
    dx, dy, reach = a[0] - b[0], a[1] - b[1], a[6] + b[6]
    if not (reach > 0 and dx * dx + dy * dy < reach * reach):
        return False
    # inter / (both - inter) > thresh needs inter > needed; a little less, to leave room for rounding
    both = a[7] + b[7]
    needed = thresh / (1 + thresh) * both * (1 - 1e-9)
    if min(a[7], b[7]) < needed or _bound(a, b, dx, dy) < needed or _bound(b, a, dx, dy) < needed:
        return False
    inter = overlap(a, b)
    return inter / (both - inter) > thresh


@jit
def _bound(a, b, dx, dy):  # type: ignore[no-untyped-def]
    """Area that b shares with a's bounding rectangle along b's own sides: no less than overlap(a, b)."""
    cos, sin = abs(a[4] * b[4] + a[5] * b[5]), abs(a[5] * b[4] - a[4] * b[5])
    width, length = a[2] * cos + a[3] * sin, a[2] * sin + a[3] * cos
    x, y = abs(dx * b[4] + dy * b[5]), abs(dy * b[4] - dx * b[5])
    x_shared = min(2 * b[2], 2 * width, b[2] + width - x)
    y_shared = min(2 * b[3], 2 * length, b[3] + length - y)
    return max(x_shared, 0.0) * max(y_shared, 0.0)


@jit
def _grid(rows):  # type: ignore[no-untyped-def]
    """Lower corner, cell size and cells a side; nine boxes of ten reach no further than a neighbour cell."""
    radius = rows[:, 6].copy()
    radius.sort()
    radius = radius[np.searchsorted(radius, 0.0, side="right") :]
    if len(radius) == 0:
        return 0.0, 0.0, 1.0, 1
    x1, y1, x2, y2 = np.inf, np.inf, -np.inf, -np.inf
    for n in range(len(rows)):
        if rows[n, 6] > 0:
            x1, x2 = min(x1, rows[n, 0]), max(x2, rows[n, 0])
            y1, y2 = min(y1, rows[n, 1]), max(y2, rows[n, 1])
    span = max(x2 - x1, y2 - y1)
    cell = max(2 * radius[len(radius) * 9 // 10], span / (_CELLS - 1))
    return x1, y1, cell, int(span / cell) + 1 if cell < np.inf else 1


@jit
def _greedy(rows, thresh):  # type: ignore[no-untyped-def]
    """Prepared rectangles by falling score -> positions of those that stay."""
    x1, y1, cell, side = _grid(rows)
    large = side * side  # the list of those that are larger than a cell
    head = np.full(large + 1, -1, dtype=np.int64)  # newest kept box of each list
    older = np.full(len(rows), -1, dtype=np.int64)  # the one kept before it in that list
    kept = np.empty(len(rows), dtype=np.int64)
    count = 0
    for n in range(len(rows)):
        if rows[n, 6] > 0:
            i = min(int((rows[n, 0] - x1) / cell), side - 1)
            j = min(int((rows[n, 1] - y1) / cell), side - 1)
            if 2 * rows[n, 6] > cell:  # may reach anyone
                rival = _beaten_by_any(rows, n, kept, count, thresh)
                place = large
            else:
                rival = _beaten_nearby(rows, n, head, older, side, i, j, thresh)
                place = i * side + j
            if rival:
                continue
            older[n], head[place] = head[place], n
        kept[count] = n
        count += 1
    return kept[:count].copy()


@jit
def _beaten_by_any(rows, n, kept, count, thresh):  # type: ignore[no-untyped-def]
    box = row(rows, n)
    for k in range(count):  # noqa: SIM110 (numba compiles no any(...))
        if _above(box, row(rows, kept[k]), thresh):
            return True
    return False


@jit
def _beaten_nearby(rows, n, head, older, side, i, j, thresh):  # type: ignore[no-untyped-def]
    box = row(rows, n)
    for near in range(10):
        p, q = i - 1 + near // 3, j - 1 + near % 3
        if near == 9:
            other = head[side * side]  # the large ones
        elif 0 <= p < side and 0 <= q < side:
            other = head[p * side + q]
        else:
            continue
        while other >= 0:
            # asked here once more: most answers are no, and come without loading the other numbers
            dx, dy = box[0] - rows[other, 0], box[1] - rows[other, 1]
            reach = box[6] + rows[other, 6]
            if dx * dx + dy * dy < reach * reach and _above(box, row(rows, other), thresh):
                return True
            other = older[other]
    return False


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
        stays = _walk(len(open_), later.cpu().numpy(), earlier.cpu().numpy())
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


@jit
def _walk(count, later, earlier):  # type: ignore[no-untyped-def]
    """Greedy choice from the overlapping pairs, sorted by ``later``: whoever meets a kept one goes."""
    stays = np.ones(count, dtype=np.bool_)
    for pair in range(len(later)):
        if stays[earlier[pair]]:
            stays[later[pair]] = False
    return stays
