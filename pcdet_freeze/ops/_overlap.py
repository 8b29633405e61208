"""Area that two rotated rectangles share: one formula, once for numba and once for torch, in float64.

Let A be the smaller rectangle, B the larger, in whose frame (half sizes hx, hy) we work. Green's theorem
with P(x, y) = clamp(x, -hx, hx) * [|y| <= hy], whose x-derivative is 1 inside B and 0 outside, turns the area
into an integral over A's four edges alone:

    area(A and B) = sum over the edges of A of the integral of clamp(x, -hx, hx) dy, y within [-hy, hy]

On an edge x is linear in y, so each integral is a clamped linear function's mean times a height. Nothing is
intersected, sorted or compared: shared sides, touching corners and equal boxes are no special cases, and the
area moves continuously with the boxes. A constant added to x integrates to zero around A; subtracting the
clamped centre of A keeps the summands, and so the rounding error, as small as the area asked for.

Rounding leaves about 1e-15 of the smaller area; what is below EPSILON of it counts as touching: exactly 0.
A rectangle with a value that is not finite, or a size that is not positive, shares nothing with anyone.

A rectangle is a row [x, y, dx, dy, angle] of a float64 array.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from pcdet_freeze.ops._arrays import jit

EPSILON = 1e-9


@jit
def prepare(rectangles):  # type: ignore[no-untyped-def]
    """(N, 5) -> (N, 8): x, y, half dx, half dy, cos, sin, radius of the circumscribed circle, area."""
    out = np.zeros((len(rectangles), 8))
    for n in range(len(rectangles)):
        x, y, dx, dy, angle = rectangles[n]
        area = dx * dy
        if not (dx > 0 and dy > 0 and np.isfinite(x + y + area + angle)):
            out[n, 6] = -np.inf  # no circle touches this one
            continue
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = x, y, dx / 2, dy / 2
        out[n, 4], out[n, 5] = math.cos(angle), math.sin(angle)
        out[n, 6], out[n, 7] = math.sqrt(dx * dx + dy * dy) / 2, area
    return out


@jit
def _edge(x1, y1, x2, y2, hx, hy, x0):  # type: ignore[no-untyped-def]
    """Integral of clamp(x, -hx, hx) - x0 over dy along the part of an edge with |y| <= hy."""
    ya, yb = min(max(y1, -hy), hy), min(max(y2, -hy), hy)
    if ya == yb:
        return 0.0
    # as fractions of the edge, both within [0, 1] however flat it lies
    xa = x1 + (ya - y1) / (y2 - y1) * (x2 - x1)
    xb = x1 + (yb - y1) / (y2 - y1) * (x2 - x1)
    ca, cb = min(max(xa, -hx), hx), min(max(xb, -hx), hx)
    if xa == xb:
        mean = ca - x0
    else:
        # the part before the clamp lets go, the part between, the part after it holds again
        mean = ((ca - xa) * (ca - x0) + (cb - ca) * ((ca + cb) / 2 - x0) + (xb - cb) * (cb - x0)) / (xb - xa)
    return (yb - ya) * mean


@jit
def row(rows, n):  # type: ignore[no-untyped-def]
    """One prepared rectangle as a tuple of numbers: a view of the array would cost more than the area."""
    return (
        rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3],
        rows[n, 4], rows[n, 5], rows[n, 6], rows[n, 7],
    )  # fmt: skip


@jit
def overlap(a, b):  # type: ignore[no-untyped-def]
    """Area that two prepared rectangles, given as ``row`` gives them, share; square metres."""
    if a[7] > b[7]:
        a, b = b, a
    ax, ay, ahx, ahy, acos, asin, aradius, smaller = a
    bx, by, hx, hy, bcos, bsin, bradius, _ = b
    dx, dy, reach = ax - bx, ay - by, aradius + bradius
    if not (reach > 0 and dx * dx + dy * dy < reach * reach):
        return 0.0
    x, y = dx * bcos + dy * bsin, dy * bcos - dx * bsin
    cos, sin = acos * bcos + asin * bsin, asin * bcos - acos * bsin
    ux, uy, vx, vy = ahx * cos, ahx * sin, -ahy * sin, ahy * cos
    x0 = min(max(x, -hx), hx)
    p, q = ux + vx, uy + vy  # towards a's front-left corner
    r, s = vx - ux, vy - uy  # towards its rear-left corner
    area = (
        _edge(x + p, y + q, x + r, y + s, hx, hy, x0)
        + _edge(x + r, y + s, x - p, y - q, hx, hy, x0)
        + _edge(x - p, y - q, x - r, y - s, hx, hy, x0)
        + _edge(x - r, y - s, x + p, y + q, hx, hy, x0)
    )
    return min(area, smaller) if area > EPSILON * smaller else 0.0


@jit
def overlap_matrix(a, b):  # type: ignore[no-untyped-def]
    """Prepared (N, 8), (M, 8) -> (N, M)."""
    out = np.zeros((len(a), len(b)))
    for n in range(len(a)):
        left = row(a, n)
        for m in range(len(b)):
            out[n, m] = overlap(left, row(b, m))
    return out


@jit
def overlap_pairs(a, b):  # type: ignore[no-untyped-def]
    """Prepared (N, 8), (N, 8) -> (N,)."""
    out = np.zeros(len(a))
    for n in range(len(a)):
        out[n] = overlap(row(a, n), row(b, n))
    return out


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
    """Prepared (N, 8), (M, 8) -> (N, M) bool: the circumscribed circles meet."""
    dx, dy = a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]
    reach = a[:, None, 6] + b[None, :, 6]
    return (reach > 0) & (dx * dx + dy * dy < reach * reach)


def overlap_torch(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``overlap`` of prepared pairs (P, 8), (P, 8) whose circles meet -> (P,)."""
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
