"""The formula of `_rotated_overlap.py` on tensors with the same operations, for any device."""

from __future__ import annotations

import itertools
import math

import torch

from pcdet_freeze.ops._rotated_overlap import EPSILON

_CHUNK = 1 << 21  # number of pairs processed at once


def prepare_torch(rectangles: torch.Tensor) -> torch.Tensor:
    """``prepare`` on a tensor."""
    x, y, dx, dy, angle = rectangles.unbind(1)
    radius = (dx * dx + dy * dy).sqrt() / 2
    rows = torch.stack([x, y, dx / 2, dy / 2, angle.cos(), angle.sin(), radius, dx * dy], dim=1)
    usable = (dx > 0) & (dy > 0) & (x + y + dx * dy + angle).isfinite()
    rows = torch.where(usable[:, None], rows, torch.zeros_like(rows))
    rows[:, 6] = torch.where(usable, radius, -math.inf)
    return rows


def near_torch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Prepared (N, 8), (M, 8) -> (N, M) bool: the circumscribed circles overlap."""
    dx, dy = a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]
    reach = a[:, None, 6] + b[None, :, 6]
    return (reach > 0) & (dx * dx + dy * dy < reach * reach)


def overlap_torch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``overlap`` of prepared pairs (P, 8), (P, 8) whose circles overlap -> (P,)."""
    swap = (a[:, 7] > b[:, 7])[:, None]
    a, b = torch.where(swap, b, a), torch.where(swap, a, b)
    ax, ay, ahx, ahy, acos, asin, _, smaller = a.unbind(1)
    bx, by, hx, hy, bcos, bsin, _, _ = b.unbind(1)
    dx, dy = ax - bx, ay - by
    x, y = dx * bcos + dy * bsin, dy * bcos - dx * bsin
    cos, sin = acos * bcos + asin * bsin, asin * bcos - acos * bsin
    ux, uy, vx, vy = ahx * cos, ahx * sin, -ahy * sin, ahy * cos
    x0 = _clamp(x, hx)
    p, q, r, s = ux + vx, uy + vy, vx - ux, vy - uy
    corners = ((x + p, y + q), (x + r, y + s), (x - p, y - q), (x - r, y - s), (x + p, y + q))
    area = torch.zeros_like(x)
    for (x1, y1), (x2, y2) in itertools.pairwise(corners):
        area = area + _edge_torch(x1, y1, x2, y2, hx, hy, x0)
    return torch.where(area > EPSILON * smaller, torch.minimum(area, smaller), 0.0)


def _clamp(value: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(value, -half), half)


def _edge_torch(
    x1: torch.Tensor,
    y1: torch.Tensor,
    x2: torch.Tensor,
    y2: torch.Tensor,
    hx: torch.Tensor,
    hy: torch.Tensor,
    x0: torch.Tensor,
) -> torch.Tensor:
    ya, yb = _clamp(y1, hy), _clamp(y2, hy)
    xa = x1 + (ya - y1) / (y2 - y1) * (x2 - x1)
    xb = x1 + (yb - y1) / (y2 - y1) * (x2 - x1)
    ca, cb = _clamp(xa, hx), _clamp(xb, hx)
    weighted = (ca - xa) * (ca - x0) + (cb - ca) * ((ca + cb) / 2 - x0) + (xb - cb) * (cb - x0)
    mean = torch.where(xa == xb, ca - x0, weighted / (xb - xa))
    return torch.where(ya == yb, 0.0, (yb - ya) * mean)


def pair_overlap_torch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Prepared rectangles (P, 8), (P, 8) -> intersection areas (P,)."""
    dx, dy, reach = a[:, 0] - b[:, 0], a[:, 1] - b[:, 1], a[:, 6] + b[:, 6]
    near = (reach > 0) & (dx * dx + dy * dy < reach * reach)  # avoids 0 / 0 in the formula
    inter = torch.zeros_like(dx)
    inter[near] = overlap_torch(a[near], b[near])
    return inter


def overlap_matrix_torch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Prepared rectangles (N, 8), (M, 8) -> intersection areas (N, M), in blocks of rows."""
    out = a.new_zeros((len(a), len(b)))
    rows = max(1, _CHUNK // max(1, len(b)))
    for begin in range(0, len(a), rows):
        n, m = near_torch(a[begin : begin + rows], b).nonzero(as_tuple=True)
        out[begin + n, m] = overlap_torch(a[begin + n], b[m])
    return out
