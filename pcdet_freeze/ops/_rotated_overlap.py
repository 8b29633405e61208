"""Intersection area of two rotated rectangles: one formula without special cases, in float64.

Let A be the smaller rectangle and B the larger one, whose frame (half sizes hx, hy) is used. Green's theorem
with P(x, y) = clamp(x, -hx, hx) * [|y| <= hy], whose x-derivative is 1 inside B and 0 outside, turns the area
into an integral over A's four edges alone:

    area(A and B) = sum over the edges of A of the integral of clamp(x, -hx, hx) dy, y within [-hy, hy]

On an edge x is linear in y, so each integral is the mean of a clamped linear function times a height. No
edges are intersected, sorted or compared. Shared sides, touching corners and equal boxes need no special
cases, and the area is a continuous function of the boxes. A constant added to x integrates to zero around A;
subtracting the clamped centre of A keeps the summands, and therefore the rounding error, as small as the
area.

The rounding error is about 1e-15 of the smaller area. Areas below EPSILON times the smaller area are set to
exactly 0. A rectangle with a non-finite value or a non-positive size has no intersection with any rectangle.

A rectangle is a row [x, y, dx, dy, angle] of a float64 array. `_rotated_overlap_torch.py` implements the same
formula on tensors.
"""

from __future__ import annotations

import math

import numpy as np

from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.signals.interrupts import uninterrupted

EPSILON = 1e-9
_CELLS = 128  # maximum number of cells per side of the grid of NMS


@uninterrupted
@compiled
def prepare(rectangles):  # type: ignore[no-untyped-def]
    """(N, 5) -> (N, 8): x, y, half dx, half dy, cos, sin, radius of the circumscribed circle, area."""
    out = np.zeros((len(rectangles), 8))
    for n in range(len(rectangles)):
        x, y, dx, dy, angle = rectangles[n]
        area = dx * dy
        if not (dx > 0 and dy > 0 and np.isfinite(x + y + area + angle)):
            out[n, 6] = -np.inf  # touches no circle
            continue
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = x, y, dx / 2, dy / 2
        out[n, 4], out[n, 5] = math.cos(angle), math.sin(angle)
        out[n, 6], out[n, 7] = math.sqrt(dx * dx + dy * dy) / 2, area
    return out


@compiled
def _edge(x1, y1, x2, y2, hx, hy, x0):  # type: ignore[no-untyped-def]
    """Integral of clamp(x, -hx, hx) - x0 over dy along the part of an edge with |y| <= hy."""
    ya, yb = min(max(y1, -hy), hy), min(max(y2, -hy), hy)
    if ya == yb:
        return 0.0
    # as fractions of the edge, both within [0, 1] even if it is nearly horizontal
    xa = x1 + (ya - y1) / (y2 - y1) * (x2 - x1)
    xb = x1 + (yb - y1) / (y2 - y1) * (x2 - x1)
    ca, cb = min(max(xa, -hx), hx), min(max(xb, -hx), hx)
    if xa == xb:
        mean = ca - x0
    else:
        # the clamped part, the linear part, the clamped part
        mean = ((ca - xa) * (ca - x0) + (cb - ca) * ((ca + cb) / 2 - x0) + (xb - cb) * (cb - x0)) / (xb - xa)
    return (yb - ya) * mean


@compiled
def row(rows, n):  # type: ignore[no-untyped-def]
    """One prepared rectangle as a tuple of numbers; a view of the array would be slower than the area."""
    return (
        rows[n, 0], rows[n, 1], rows[n, 2], rows[n, 3],
        rows[n, 4], rows[n, 5], rows[n, 6], rows[n, 7],
    )  # fmt: skip


@compiled
def overlap(a, b):  # type: ignore[no-untyped-def]
    """Intersection area of two prepared rectangles (tuples of ``row``), square metres."""
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
    p, q = ux + vx, uy + vy  # to the front-left corner of a
    r, s = vx - ux, vy - uy  # to the rear-left corner of a
    area = (
        _edge(x + p, y + q, x + r, y + s, hx, hy, x0)
        + _edge(x + r, y + s, x - p, y - q, hx, hy, x0)
        + _edge(x - p, y - q, x - r, y - s, hx, hy, x0)
        + _edge(x - r, y - s, x + p, y + q, hx, hy, x0)
    )
    return min(area, smaller) if area > EPSILON * smaller else 0.0


@uninterrupted
@compiled
def overlap_matrix(a, b):  # type: ignore[no-untyped-def]
    """Prepared (N, 8), (M, 8) -> (N, M)."""
    out = np.zeros((len(a), len(b)))
    for n in range(len(a)):
        left = row(a, n)
        for m in range(len(b)):
            out[n, m] = overlap(left, row(b, m))
    return out


@uninterrupted
@compiled
def overlap_pairs(a, b):  # type: ignore[no-untyped-def]
    """Prepared (N, 8), (N, 8) -> (N,)."""
    out = np.zeros(len(a))
    for n in range(len(a)):
        out[n] = overlap(row(a, n), row(b, n))
    return out


@compiled
def _above(a, b, thresh):  # type: ignore[no-untyped-def]
    """True if the IoU of two prepared rectangles is > thresh; cheap bounds avoid most areas."""
    dx, dy, reach = a[0] - b[0], a[1] - b[1], a[6] + b[6]
    if not (reach > 0 and dx * dx + dy * dy < reach * reach):
        return False
    # inter / (both - inter) > thresh requires inter > needed, which is reduced to allow for rounding
    both = a[7] + b[7]
    needed = thresh / (1 + thresh) * both * (1 - 1e-9)
    if min(a[7], b[7]) < needed or _bound(a, b, dx, dy) < needed or _bound(b, a, dx, dy) < needed:
        return False
    inter = overlap(a, b)
    return inter / (both - inter) > thresh


@compiled
def _bound(a, b, dx, dy):  # type: ignore[no-untyped-def]
    """Upper bound of overlap(a, b): the intersection of b with the bounding rectangle of a in b's frame."""
    cos, sin = abs(a[4] * b[4] + a[5] * b[5]), abs(a[5] * b[4] - a[4] * b[5])
    width, length = a[2] * cos + a[3] * sin, a[2] * sin + a[3] * cos
    x, y = abs(dx * b[4] + dy * b[5]), abs(dy * b[4] - dx * b[5])
    x_shared = min(2 * b[2], 2 * width, b[2] + width - x)
    y_shared = min(2 * b[3], 2 * length, b[3] + length - y)
    return max(x_shared, 0.0) * max(y_shared, 0.0)


@compiled
def _grid(rows):  # type: ignore[no-untyped-def]
    """Lower corner, cell size and cells per side; 90 % of the boxes reach into adjacent cells at most."""
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


@uninterrupted
@compiled
def greedy(rows, thresh):  # type: ignore[no-untyped-def]
    """Prepared rectangles in descending order of score -> indices of the kept ones."""
    x1, y1, cell, side = _grid(rows)
    large = side * side  # list of the boxes that are larger than a cell
    head = np.full(large + 1, -1, dtype=np.int64)  # last kept box of each list
    older = np.full(len(rows), -1, dtype=np.int64)  # previous kept box of the same list
    kept = np.empty(len(rows), dtype=np.int64)
    count = 0
    for n in range(len(rows)):
        if rows[n, 6] > 0:
            i = min(int((rows[n, 0] - x1) / cell), side - 1)
            j = min(int((rows[n, 1] - y1) / cell), side - 1)
            if 2 * rows[n, 6] > cell:  # may overlap any box
                suppressed = _suppressed_by_any(rows, n, kept, count, thresh)
                place = large
            else:
                suppressed = _suppressed_nearby(rows, n, head, older, side, i, j, thresh)
                place = i * side + j
            if suppressed:
                continue
            older[n], head[place] = head[place], n
        kept[count] = n
        count += 1
    return kept[:count].copy()


@compiled
def _suppressed_by_any(rows, n, kept, count, thresh):  # type: ignore[no-untyped-def]
    box = row(rows, n)
    for k in range(count):  # noqa: SIM110 (numba compiles no any(...))
        if _above(box, row(rows, kept[k]), thresh):
            return True
    return False


@compiled
def _suppressed_nearby(rows, n, head, older, side, i, j, thresh):  # type: ignore[no-untyped-def]
    box = row(rows, n)
    for near in range(10):
        p, q = i - 1 + near // 3, j - 1 + near % 3
        if near == 9:
            other = head[side * side]  # boxes larger than a cell
        elif 0 <= p < side and 0 <= q < side:
            other = head[p * side + q]
        else:
            continue
        while other >= 0:
            # checked here as well: most pairs are rejected without loading the other columns
            dx, dy = box[0] - rows[other, 0], box[1] - rows[other, 1]
            reach = box[6] + rows[other, 6]
            if dx * dx + dy * dy < reach * reach and _above(box, row(rows, other), thresh):
                return True
            other = older[other]
    return False


@uninterrupted
@compiled
def walk(count, later, earlier):  # type: ignore[no-untyped-def]
    """Greedy NMS from overlapping pairs, sorted by ``later``: a box that overlaps a kept one is removed."""
    kept = np.ones(count, dtype=np.bool_)
    for pair in range(len(later)):
        if kept[earlier[pair]]:
            kept[later[pair]] = False
    return kept
