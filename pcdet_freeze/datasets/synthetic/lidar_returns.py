"""LiDAR returns of one revolution: which hits return a point, and its range, intensity and label.

The signal of a hit is ``reflectivity * (0.15 + 0.85 facing) * (30 m / range)^2``, where ``facing`` is the
cosine of the incidence angle. A return is lost with probability ``dropout * (0.01 + 0.99 exp(-40 signal))``,
so distant, dark and grazed surfaces are lost first. Intensity is range-corrected: the reflectivity,
attenuated at grazing incidence, with speckle noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.synthetic.counter_rng import bell, blotch, stream, uniform
from pcdet_freeze.datasets.synthetic.raycast import Hits
from pcdet_freeze.datasets.synthetic.sensor import Rays
from pcdet_freeze.datasets.synthetic.shapes import Ground
from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.signals.interrupts import uninterrupted

CAR, LANE, IGNORE = 6, 10, 255  # indices into labels.CLASSES that the kernels use
ROAD, TERRAIN = 0, 2

LINE_OFFSET, LINE_WIDTH, LINE_REFLECTIVITY, LINE_WEAR, LINE_PERIOD, LINE_DASH, LINE_PHASE = range(7)
"""Columns of the (K, 7) float64 table of painted lines: lateral offset, width, reflectivity, wear, period,
dash length (equal to the period: solid) and phase along x. Lengths in metres, wear in [0, 1)."""


class Emission(NamedTuple):
    """Sensor model: maximum range ``limit`` and range ``noise`` in metres, ``dropout`` scale of the loss
    probability, ``spurious`` fraction of stray points."""

    limit: float
    noise: float
    dropout: float
    spurious: float


class Returns(NamedTuple):
    """Points of a revolution: ``points`` (N, 4) float32 x, y, z in metres and intensity in [0, 1]; ``labels``
    (N,) uint8 semantic class; ``owner`` (N,) int16 index of the object, or -1; ``ray`` (N,) int32."""

    points: NDArray[np.float32]
    labels: NDArray[np.uint8]
    owner: NDArray[np.int16]
    ray: NDArray[np.int32]


@compiled
def _lost(key: np.uint64, reflectivity: float, facing: float, t: float, dropout: float) -> bool:
    signal = reflectivity * (0.15 + 0.85 * facing) * (30.0 / t) ** 2
    return uniform(key, 1) < dropout * (0.01 + 0.99 * math.exp(-40.0 * signal))


@compiled
def _solid_return(
    solids: NDArray, what: int, facing: float, t: float, key: np.uint64, dropout: float
) -> tuple:
    """(returned, reflectivity) of a hit on a solid. License plates and lamps of cars are bright."""
    s = solids[what]
    bright = s.reflectivity * (1.0 + 0.15 * bell(key, 2))
    if s.label == CAR and uniform(key, 3) < 0.02:
        bright = 0.9
    bright = min(max(bright, 0.01), 1.0)
    if s.glass > 0 and uniform(key, 4) < s.glass:
        return False, bright
    return not _lost(key, bright, facing, t, dropout), bright


@compiled
def _paint(lines: NDArray, x: float, y: float, lateral: float, key: np.uint64) -> float:
    """Reflectivity of the paint at a point of the road; 0 if there is none or if it is worn off."""
    for k in range(len(lines)):
        line = lines[k]
        if abs(lateral - line[LINE_OFFSET]) > 0.5 * line[LINE_WIDTH]:
            continue
        along = (x - line[LINE_PHASE]) % line[LINE_PERIOD]
        if along > line[LINE_DASH] or blotch(stream(key, 11), 4.0 * x, 4.0 * y) < line[LINE_WEAR]:
            return 0.0
        return line[LINE_REFLECTIVITY]
    return 0.0


@compiled
def _ground_return(
    g: Ground,
    lines: NDArray,
    surface: int,
    x: float,
    y: float,
    lateral: float,
    key: np.uint64,
    ray: np.uint64,
) -> tuple:
    """(label, reflectivity) of a point on the ground."""
    grain = bell(ray, 2)
    if surface == ROAD:
        paint = _paint(lines, x, y, lateral, key)
        if paint > 0:
            return LANE, paint * (1.0 + 0.18 * grain)
        patch, grit = blotch(stream(key, 12), 0.4 * x, 0.4 * y), blotch(stream(key, 13), 2.5 * x, 2.5 * y)
        return ROAD, g.asphalt * (1.0 + g.patchiness * (patch + 0.6 * grit - 0.8) + 0.22 * grain)
    if surface == TERRAIN:
        return TERRAIN, g.terrain * (1.0 + 0.35 * grain)
    return surface, g.pavement * (1.0 + 0.18 * grain)


@uninterrupted
@compiled
def lidar_returns(
    hits: Hits, solids: NDArray, g: Ground, lines: NDArray, rays: Rays, emission: Emission, key: np.uint64
) -> Returns:
    """Points of the hits that are not lost, with range noise, intensity, label and owner."""
    count, beams = len(hits.ray), len(rays.cos_el)
    points, labels = np.empty((count, 4), np.float32), np.empty(count, np.uint8)
    owner, source = np.empty(count, np.int16), np.empty(count, np.int32)
    n = 0
    for k in range(count):
        number, t, what, facing = hits.ray[k], hits.range[k], hits.what[k], hits.facing[k]
        column, beam = number // beams, number % beams
        cos = rays.cos_az[column] * rays.cos_off[beam] - rays.sin_az[column] * rays.sin_off[beam]
        sin = rays.sin_az[column] * rays.cos_off[beam] + rays.cos_az[column] * rays.sin_off[beam]
        dx, dy, dz = cos * rays.cos_el[beam], sin * rays.cos_el[beam], rays.sin_el[beam]
        ray = stream(key, number)
        noise = emission.noise
        if what >= 0:
            seen, bright = _solid_return(solids, what, facing, t, ray, emission.dropout)
            label, owned_by = solids[what].label, solids[what].owner
        else:
            label, bright = _ground_return(g, lines, -1 - what, t * dx, t * dy, hits.lateral[k], key, ray)
            bright = min(max(bright, 0.01), 1.0)
            seen, owned_by = not _lost(ray, bright, facing, t, emission.dropout), -1
            noise = 3 * noise if label == TERRAIN else noise
        if not seen:
            continue
        if uniform(ray, 5) < emission.spurious:
            t, label, owned_by = 1.5 + (t - 1.5) * uniform(ray, 6), IGNORE, -1
        t += noise * bell(ray, 7)
        shade = bright * (0.85 + 0.15 * facing) * (1.0 + 0.12 * bell(ray, 8))
        points[n, 0], points[n, 1], points[n, 2] = t * dx, t * dy, t * dz
        points[n, 3] = round(100 * min(max(shade, 0.0), 1.0)) / 100
        labels[n], owner[n], source[n] = label, owned_by, number
        n += 1
    return Returns(points[:n].copy(), labels[:n].copy(), owner[:n].copy(), source[:n].copy())


@uninterrupted
@compiled
def count_alone(
    hits: Hits, solids: NDArray, dropout: float, objects: int, key: np.uint64
) -> NDArray[np.int64]:
    """(G,) number of returns of each object without occlusion; ``hits`` come from ``hits_alone``."""
    out = np.zeros(objects, np.int64)
    for k in range(len(hits.ray)):
        what, ray = hits.what[k], stream(key, hits.ray[k])
        seen, _ = _solid_return(solids, what, hits.facing[k], hits.range[k], ray, dropout)
        if seen:
            out[solids[what].owner] += 1
    return out
