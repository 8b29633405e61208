"""Ray casting of one revolution: the first surface that each ray hits.

Each solid has a window of azimuth columns and elevations. A ray is tested against the solids of its column
only, nearest first, and stops when the next solid begins behind the closest hit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.synthetic.counter_rng import stream, uniform
from pcdet_freeze.datasets.synthetic.sensor import Rays
from pcdet_freeze.datasets.synthetic.shapes import CYLINDER, ELLIPSOID, Ground
from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.signals.interrupts import uninterrupted

MISS = 1e9
"""Range of a ray that hits nothing."""


class Hits(NamedTuple):
    """Hits of K rays: ``ray`` (K,) int64 index; ``range`` (K,) metres; ``what`` (K,) int64 index of the
    solid, or -1 - c for ground of class c; ``facing`` (K,) cosine of the incidence angle; ``lateral`` (K,)
    offset from the centre line of the road in metres (ground hits only)."""

    ray: NDArray[np.int64]
    range: NDArray[np.float64]
    what: NDArray[np.int64]
    facing: NDArray[np.float64]
    lateral: NDArray[np.float64]


@compiled
def _clip(span: tuple, dn: float, room: float, length: float) -> tuple:
    """Clip the span (enter, leave, facing) of a ray to the half space ``t * dn <= room``."""
    enter, leave, facing = span
    if dn > 0:
        return enter, min(leave, room / dn), facing
    if dn < 0:
        t = room / dn
        if t > enter:
            return t, leave, -dn / length
        return span
    return (enter, leave, facing) if room >= 0 else (MISS, -MISS, 0.0)


@compiled
def _cross_hexahedron(s: Any, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> tuple:
    span = _clip((-MISS, MISS, 0.0), dz, s.hz - oz, 1.0)
    span = _clip(span, -dz, s.hz + oz, 1.0)
    lean = s.front / (2 * s.hz)
    span = _clip(span, dx + lean * dz, s.hx - ox - lean * (s.hz + oz), math.sqrt(1 + lean * lean))
    lean = s.back / (2 * s.hz)
    span = _clip(span, -dx + lean * dz, s.hx + ox - lean * (s.hz + oz), math.sqrt(1 + lean * lean))
    lean = s.side / (2 * s.hz)
    length = math.sqrt(1 + lean * lean)
    span = _clip(span, dy + lean * dz, s.hy - oy - lean * (s.hz + oz), length)
    return _clip(span, -dy + lean * dz, s.hy + oy - lean * (s.hz + oz), length)


@compiled
def _cross_round(s: Any, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> tuple:
    """Span of a ray through an ellipsoid or an upright elliptic cylinder."""
    px, py, qx, qy = ox / s.hx, oy / s.hy, dx / s.hx, dy / s.hy
    upright = 0.0 if s.kind == CYLINDER else 1.0
    pz, qz = upright * oz / s.hz, upright * dz / s.hz
    a = qx * qx + qy * qy + qz * qz
    b = px * qx + py * qy + pz * qz
    disc = b * b - a * (px * px + py * py + pz * pz - 1.0)
    if disc <= 0 or a <= 0:
        return MISS, -MISS, 0.0
    root = math.sqrt(disc)
    enter, leave = (-b - root) / a, (-b + root) / a
    nx, ny, nz = (px + enter * qx) / s.hx, (py + enter * qy) / s.hy, (pz + enter * qz) * upright / s.hz
    facing = -(nx * dx + ny * dy + nz * dz) / math.sqrt(nx * nx + ny * ny + nz * nz)
    if s.kind == ELLIPSOID:
        return enter, leave, facing
    span = _clip((enter, leave, facing), dz, s.hz - oz, 1.0)
    return _clip(span, -dz, s.hz + oz, 1.0)


@compiled
def _cross(s: Any, dx: float, dy: float, dz: float) -> tuple:
    """(enter, leave, facing) of a ray from the sensor through one solid; enter > leave means a miss."""
    ox, oy = -(s.cx * s.cos + s.cy * s.sin), s.cx * s.sin - s.cy * s.cos
    lx, ly = dx * s.cos + dy * s.sin, dy * s.cos - dx * s.sin
    if s.kind == CYLINDER or s.kind == ELLIPSOID:
        return _cross_round(s, ox, oy, -s.cz, lx, ly, dz)
    return _cross_hexahedron(s, ox, oy, -s.cz, lx, ly, dz)


@compiled
def _meet(s: Any, number: int, dx: float, dy: float, dz: float, key: np.uint64) -> tuple:
    """(range, facing) of the hit of a ray on a solid, or MISS. In a porous solid the free path is drawn from
    the exponential distribution of its density, and the incidence angle is random."""
    enter, leave, facing = _cross(s, dx, dy, dz)
    if enter > leave or enter < 0.5:
        return MISS, 0.0
    if s.density <= 0:
        return enter, facing
    path = -math.log(1.0 - uniform(key, 2 * number)) / s.density
    if path > leave - enter:
        return MISS, 0.0
    return enter + path, 0.2 + 0.8 * uniform(key, 2 * number + 1)


@compiled
def _descend(g: Ground, rise: float, dx: float, dy: float, dz: float) -> float:
    """Range at which a ray hits the curved ground raised by ``rise`` metres."""
    bend = -(g.bend_xx * dx * dx + g.bend_xy * dx * dy + g.bend_yy * dy * dy)
    fall = dz - g.slope_x * dx - g.slope_y * dy
    room = g.sensor_height - rise
    disc = fall * fall - 4 * bend * room
    if disc < 0:
        return MISS
    below = math.sqrt(disc) - fall
    return 2 * room / below if below > 1e-9 else MISS


@compiled
def _lateral(g: Ground, x: float, y: float) -> float:
    slope = g.y1 + x * (g.y2 + x * g.y3 / 2)
    return (y - g.y0 - x * (g.y1 + x * (g.y2 / 2 + x * g.y3 / 6))) / math.sqrt(1 + slope * slope)


@compiled
def _asphalt(g: Ground, x: float, y: float, d: float) -> bool:
    if g.right <= d <= g.left:
        return True
    across = (x - g.junction_x) * g.junction_ux + (y - g.junction_y) * g.junction_uy
    return g.junction_side * d > 0 and abs(across) <= g.junction_half


@compiled
def _meet_ground(g: Ground, dx: float, dy: float, dz: float, limit: float) -> tuple:
    """(range, class, facing, lateral) of the ground hit: asphalt, kerb, pavement or terrain."""
    low = _descend(g, 0.0, dx, dy, dz)
    wave = 0.0
    for _ in range(2):
        if low > 2 * limit:
            return MISS, 0, 0.0, 0.0
        wave = g.amplitude * math.sin(low * (g.wave_x * dx + g.wave_y * dy) + g.phase)
        low = _descend(g, wave, dx, dy, dz)
    high = _descend(g, wave + g.kerb, dx, dy, dz)
    facing = max(-dz, 0.01)
    d = _lateral(g, high * dx, high * dy)
    if not _asphalt(g, high * dx, high * dy, d):
        walk = g.right - d <= g.walk_right if d < 0 else d - g.left <= g.walk_left
        return high, 1 if walk else 2, facing, d
    d = _lateral(g, low * dx, low * dy)
    if _asphalt(g, low * dx, low * dy, d):
        return low, 0, facing, d
    for _ in range(8):  # the ray leaves the asphalt between the two heights, so it hits the kerb
        middle = 0.5 * (low + high)
        if _asphalt(g, middle * dx, middle * dy, _lateral(g, middle * dx, middle * dy)):
            high = middle
        else:
            low = middle
    return low, 1, 0.6, d


@compiled
def windows(solids: NDArray, rays: Rays) -> tuple:
    """Azimuth and elevation window of each solid.

    Returns:
        first column (S,), number of columns (S,), distance (S,) in metres, tangent of the lowest (S,) and of
        the highest (S,) elevation.
    """
    count, total = len(solids), len(rays.cos_az)
    first, columns = np.zeros(count, np.int64), np.zeros(count, np.int64)
    near, low, high = np.zeros(count), np.zeros(count), np.zeros(count)
    for i in range(count):
        s = solids[i]
        middle, least, most, far = math.atan2(s.cy, s.cx), 0.0, 0.0, 0.0
        for corner in range(4):
            lx, ly = s.hx * (1 - 2 * (corner & 1)), s.hy * (1 - (corner & 2))
            x, y = s.cx + lx * s.cos - ly * s.sin, s.cy + lx * s.sin + ly * s.cos
            turn = math.atan2(y, x) - middle
            turn -= 2 * math.pi * math.floor(turn / (2 * math.pi) + 0.5)
            least, most, far = min(least, turn), max(most, turn), max(far, math.hypot(x, y))
        ox, oy = s.cx * s.cos + s.cy * s.sin, s.cy * s.cos - s.cx * s.sin
        near[i] = max(math.hypot(max(abs(ox) - s.hx, 0.0), max(abs(oy) - s.hy, 0.0)), 0.1)
        first[i] = math.floor((middle + least - rays.start) / rays.step) - rays.pad
        columns[i] = min(int((most - least) / rays.step) + 2 + 2 * rays.pad, total)
        low[i] = (s.cz - s.hz) / (near[i] if s.cz < s.hz else far)
        high[i] = (s.cz + s.hz) / (near[i] if s.cz > -s.hz else far)
    return first, columns, near, low, high


@compiled
def _by_column(first: NDArray, columns: NDArray, order: NDArray, total: int) -> tuple:
    """Solids of each column, in the given order: (start (total + 1,), solid (sum,))."""
    start = np.zeros(total + 1, np.int64)
    for i in order:
        for c in range(columns[i]):
            start[(first[i] + c) % total + 1] += 1
    start = np.cumsum(start)
    cursor, listed = start.copy(), np.empty(start[-1], np.int64)
    for i in order:
        for c in range(columns[i]):
            column = (first[i] + c) % total
            listed[cursor[column]] = i
            cursor[column] += 1
    return start, listed


@compiled
def _direction(rays: Rays, column: int, beam: int) -> tuple:
    cos = rays.cos_az[column] * rays.cos_off[beam] - rays.sin_az[column] * rays.sin_off[beam]
    sin = rays.sin_az[column] * rays.cos_off[beam] + rays.cos_az[column] * rays.sin_off[beam]
    return cos * rays.cos_el[beam], sin * rays.cos_el[beam], rays.sin_el[beam]


@uninterrupted
@compiled
def nearest_hits(solids: NDArray, ground: Ground, rays: Rays, limit: float, key: np.uint64) -> Hits:
    """First hit of each ray within ``limit`` metres; rays without a hit are omitted."""
    first, columns, near, low, high = windows(solids, rays)
    total, beams = len(rays.cos_az), len(rays.cos_el)
    start, listed = _by_column(first, columns, np.argsort(near, kind="mergesort"), total)
    ray, what = np.empty(total * beams, np.int64), np.empty(total * beams, np.int64)
    best, facing, lateral = (np.empty(total * beams), np.empty(total * beams), np.empty(total * beams))
    n = 0
    for column in range(total):
        for beam in range(beams):
            dx, dy, dz = _direction(rays, column, beam)
            number = column * beams + beam
            t, surface, cosine, d = _meet_ground(ground, dx, dy, dz, limit)
            found = -1 - surface
            for k in range(start[column], start[column + 1]):
                i = listed[k]
                if near[i] > t or near[i] > limit:
                    break
                if low[i] <= rays.tan_el[beam] <= high[i]:
                    met, side = _meet(solids[i], i, dx, dy, dz, stream(key, number))
                    if met < t:
                        t, found, cosine = met, i, side
            if t <= limit:
                ray[n], best[n], what[n], facing[n], lateral[n] = number, t, found, cosine, d
                n += 1
    return Hits(ray[:n], best[:n], what[:n], facing[:n], lateral[:n])


@uninterrupted
@compiled
def hits_alone(
    solids: NDArray, hull: NDArray, offsets: NDArray, rays: Rays, limit: float, key: np.uint64
) -> Hits:
    """Hits of each object by itself, without ground and other solids.

    ``hull`` (G,) SOLID: a bounding box of each object; its solids are ``offsets[g] ... offsets[g + 1]``.
    """
    first, columns, near, low, high = windows(hull, rays)
    begin, span, nearest, bottom, top = windows(solids, rays)
    total, beams = len(rays.cos_az), len(rays.cos_el)
    room = 64
    for g in range(len(hull)):
        room += columns[g] * beams
    ray, what = np.empty(room, np.int64), np.empty(room, np.int64)
    best, facing = np.empty(room), np.empty(room)
    n = 0
    for g in range(len(hull)):
        for c in range(columns[g]):
            column = (first[g] + c) % total
            for beam in range(beams):
                if near[g] > limit or not low[g] <= rays.tan_el[beam] <= high[g]:
                    continue
                dx, dy, dz = _direction(rays, column, beam)
                number, t, found, cosine = column * beams + beam, MISS, 0, 0.0
                for i in range(offsets[g], offsets[g + 1]):
                    if nearest[i] > t or not bottom[i] <= rays.tan_el[beam] <= top[i]:
                        continue
                    if (column - begin[i]) % total >= span[i]:
                        continue
                    met, side = _meet(solids[i], i, dx, dy, dz, stream(key, number))
                    if met < t:
                        t, found, cosine = met, i, side
                if t <= limit:
                    ray[n], best[n], what[n], facing[n] = number, t, found, cosine
                    n += 1
    return Hits(ray[:n], best[:n], what[:n], facing[:n], np.zeros(n))
