"""Geometry of a scene for the ray caster: a table of solids, and the ground with its road.

LiDAR frame: sensor at the origin, x forward, y left, z up, metres, yaw counter-clockwise from x. This file
defines types only; the kernels are in raycast.py (geometry) and lidar_returns.py (intensity, noise).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HEXAHEDRON, CYLINDER, ELLIPSOID = 0, 1, 2
"""Kinds of solid. The four side faces of a hexahedron may be inclined inwards (hood, windscreen)."""

SOLID = np.dtype(
    [
        ("kind", np.int64),
        ("owner", np.int64),  # index of the labelled object, -1: none
        ("label", np.int64),  # semantic class of its points
        ("cx", np.float64),
        ("cy", np.float64),
        ("cz", np.float64),
        ("cos", np.float64),
        ("sin", np.float64),
        ("hx", np.float64),  # half extents in the frame of the solid
        ("hy", np.float64),
        ("hz", np.float64),
        ("front", np.float64),  # inward inclination of the +x face, metres from bottom to top
        ("back", np.float64),
        ("side", np.float64),
        ("reflectivity", np.float64),
        ("density", np.float64),  # mean hits per metre inside a porous solid; 0: opaque
        ("glass", np.float64),  # probability that a hit gives no return
    ],
    align=True,
)

Solid = tuple[float, ...]


def solid(
    kind: int,
    centre: tuple[float, float, float],
    half: tuple[float, float, float],
    yaw: float,
    *,
    label: int,
    reflectivity: float,
    owner: int = -1,
    lean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    density: float = 0.0,
    glass: float = 0.0,
) -> Solid:
    """One row of the SOLID table; ``half`` are half extents, ``lean`` = (front, back, side) in metres."""
    pose = (*centre, math.cos(yaw), math.sin(yaw))
    return (kind, owner, label, *pose, *half, *lean, reflectivity, density, glass)


def solid_table(rows: list[Solid]) -> NDArray[np.void]:
    """Rows -> (S,) array of dtype SOLID."""
    return np.array(rows, dtype=SOLID)


class Ground(NamedTuple):
    """A slightly curved surface with one road; all fields are floats, so that kernels can read them.

    Height: ``-sensor_height + slope . p + p' bend p + amplitude sin(wave . p + phase)``, raised by
    ``kerb`` off the road. Road: centre line ``y(x) = y0 + y1 x + y2 x^2 / 2 + y3 x^3 / 6``; lateral
    offset ``d = (y - y(x)) / sqrt(1 + y'(x)^2)``, positive to the left; asphalt where
    ``right <= d <= left``, and on a side road that leaves towards ``junction_side``.
    """

    sensor_height: float
    slope_x: float
    slope_y: float
    bend_xx: float
    bend_xy: float
    bend_yy: float
    amplitude: float
    wave_x: float
    wave_y: float
    phase: float
    kerb: float
    y0: float
    y1: float
    y2: float
    y3: float
    left: float
    right: float
    walk_left: float  # width of the pavement beside the road
    walk_right: float
    junction_side: float  # +1 left, -1 right, 0 none
    junction_x: float
    junction_y: float
    junction_ux: float  # unit vector across the side road
    junction_uy: float
    junction_half: float
    asphalt: float  # reflectivities
    pavement: float
    terrain: float
    patchiness: float  # contrast of the asphalt texture

    def centre(self, x: float) -> float:
        """y of the centre line at ``x``."""
        return self.y0 + x * (self.y1 + x * (self.y2 / 2 + x * self.y3 / 6))

    def slope(self, x: float) -> float:
        """dy/dx of the centre line at ``x``."""
        return self.y1 + x * (self.y2 + x * self.y3 / 2)

    def lateral(self, x: float, y: float) -> float:
        """Offset d from the centre line, positive to the left."""
        return (y - self.centre(x)) / math.sqrt(1 + self.slope(x) ** 2)

    def at(self, x: float, d: float) -> tuple[float, float, float]:
        """(x, y, heading of the road) of the point at about ``x`` with lateral offset ``d``."""
        heading = math.atan(self.slope(x))
        return x - d * math.sin(heading), self.centre(x) + d * math.cos(heading), heading

    def on_road(self, x: float, y: float) -> bool:
        """True on asphalt."""
        d = self.lateral(x, y)
        if self.right <= d <= self.left:
            return True
        across = (x - self.junction_x) * self.junction_ux + (y - self.junction_y) * self.junction_uy
        return self.junction_side * d > 0 and abs(across) <= self.junction_half

    def height(self, x: float, y: float) -> float:
        """z of the surface at (x, y), including the kerb."""
        bend = self.bend_xx * x * x + self.bend_xy * x * y + self.bend_yy * y * y
        wave = self.amplitude * math.sin(self.wave_x * x + self.wave_y * y + self.phase)
        base = -self.sensor_height + self.slope_x * x + self.slope_y * y + bend + wave
        return base if self.on_road(x, y) else base + self.kerb
