"""Random ground, the road on it and its painted lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy.random import RandomState

from pcdet_freeze.datasets.synthetic.labels import LaneLine
from pcdet_freeze.datasets.synthetic.shapes import Ground

DASHES = ((12.0, 3.0), (9.0, 3.0), (6.0, 3.0), (12.0, 6.0), (4.5, 1.5), (18.0, 6.0))
"""Common (period, dash) lengths of broken lines, metres."""


@dataclass(frozen=True)
class Lane:
    """A driving lane: offset of its middle from the centre line in metres, +1 along x or -1 against it."""

    offset: float
    direction: int


@dataclass(frozen=True)
class Bay:
    """Parking spaces next to the lanes: offset of the middle in metres, and whether cars park across."""

    offset: float
    across: bool


@dataclass(frozen=True)
class Street:
    """A street: ``ground``, lanes from left to right, parking bays, painted lines."""

    ground: Ground
    lanes: list[Lane]
    bays: list[Bay]
    lines: list[LaneLine]


def draw_street(rng: RandomState, sensor_height: float, busy: bool) -> Street:
    """Draw a street with 2 to 4 lanes; the sensor is in one of them. ``busy``: bays on both sides."""
    count, width = int(rng.choice((2, 2, 2, 3, 3, 4))), rng.uniform(3.0, 3.6)
    edge = count * width / 2
    one_way = rng.uniform() < 0.2
    lanes = [Lane(edge - (i + 0.5) * width, 1 if one_way or i >= count // 2 else -1) for i in range(count)]
    own = [lane for lane in lanes if lane.direction > 0][rng.randint(sum(x.direction > 0 for x in lanes))]
    left, left_bay = _side(rng, edge, 1, busy)
    right, right_bay = _side(rng, edge, -1, busy)
    ground = _draw_ground(rng, sensor_height, own.offset, left, right)
    bays = [bay for bay in (left_bay, right_bay) if bay is not None]
    return Street(ground, lanes, bays, _draw_lines(rng, count, width, one_way, ground.asphalt))


def _side(rng: RandomState, edge: float, sign: int, busy: bool) -> tuple[float, Bay | None]:
    """Offset of the kerb on one side, and the parking bay in front of it, if any."""
    edge += rng.uniform(0.2, 0.6)
    if not busy and rng.uniform() < 0.3:
        return sign * edge, None
    across = rng.uniform() < 0.25
    deep = 5.2 if across else 2.4
    return sign * (edge + deep), Bay(sign * (edge + deep / 2), across)


def _draw_ground(rng: RandomState, height: float, own: float, left: float, right: float) -> Ground:
    wave, angle = 2 * math.pi / rng.uniform(9.0, 22.0), rng.uniform(-math.pi, math.pi)
    curve = rng.uniform(-0.004, 0.004) if rng.uniform() < 0.5 else rng.uniform(-0.018, 0.018)
    centre = (-own + rng.uniform(-0.35, 0.35), rng.uniform(-0.12, 0.12), curve, rng.uniform(-2e-4, 2e-4))
    plain = dict(
        sensor_height=height,
        slope_x=rng.uniform(-0.012, 0.012),
        slope_y=rng.uniform(-0.015, 0.015),
        bend_xx=rng.uniform(-1.5e-4, 1.5e-4),
        bend_xy=rng.uniform(-1e-4, 1e-4),
        bend_yy=rng.uniform(-1.5e-4, 1.5e-4),
        amplitude=rng.uniform(0.0, 0.03),
        wave_x=wave * math.cos(angle),
        wave_y=wave * math.sin(angle),
        phase=rng.uniform(-math.pi, math.pi),
        kerb=rng.uniform(0.06, 0.16),
        walk_left=rng.uniform(1.5, 4.0),
        walk_right=rng.uniform(1.5, 4.0),
        asphalt=rng.uniform(0.14, 0.32),
        pavement=rng.uniform(0.2, 0.45),
        terrain=rng.uniform(0.2, 0.5),
        patchiness=rng.uniform(0.3, 0.9),
    )
    straight = Ground(
        **plain,
        y0=centre[0],
        y1=centre[1],
        y2=centre[2],
        y3=centre[3],
        left=left,
        right=right,
        junction_side=0.0,
        junction_half=0.0,
        junction_x=0.0,
        junction_y=0.0,
        junction_ux=1.0,
        junction_uy=0.0,
    )
    return _with_junction(rng, straight) if rng.uniform() < 0.4 else straight


def _with_junction(rng: RandomState, ground: Ground) -> Ground:
    side = float(rng.choice((-1.0, 1.0)))
    x, y, heading = ground.at(rng.uniform(-20.0, 20.0), 0.0)
    away = heading + side * math.pi / 2 + rng.uniform(-0.35, 0.35)
    return ground._replace(
        junction_side=side,
        junction_x=x,
        junction_y=y,
        junction_half=rng.uniform(2.8, 4.5),
        junction_ux=-math.sin(away),
        junction_uy=math.cos(away),
    )


def _draw_lines(rng: RandomState, lanes: int, width: float, one_way: bool, asphalt: float) -> list[LaneLine]:
    """Lines between and beside the lanes; some edge lines are missing, each line has its own wear."""
    broken, lines = DASHES[rng.randint(len(DASHES))], []
    for i in range(lanes + 1):
        edge, middle = i in (0, lanes), i == lanes // 2 and not one_way
        if edge and rng.uniform() < 0.25:
            continue
        solid = rng.uniform() < (0.85 if edge else 0.5 if middle else 0.1)
        period, dash = (10.0, 10.0) if solid else broken
        lines.append(
            LaneLine(
                offset=(lanes / 2 - i) * width,
                width=rng.uniform(0.12, 0.25),
                reflectivity=max(asphalt * rng.uniform(1.05, 1.5), rng.uniform(0.2, 0.45)),
                wear=rng.uniform(0.0, 0.6) if rng.uniform() < 0.7 else 0.0,
                period=period,
                dash=dash,
                phase=rng.uniform(0.0, period),
            )
        )
    return lines
