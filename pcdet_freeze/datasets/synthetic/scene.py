"""Layout of a street scene: a pure function of (seed, index, attempt) and the settings.

Objects are placed in this order without overlap: street, houses, driving and parked cars, people, clutter,
posts, plants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from pcdet_freeze.datasets.synthetic import objects
from pcdet_freeze.datasets.synthetic.labels import LABEL, wrap
from pcdet_freeze.datasets.synthetic.objects import Assembly, Size
from pcdet_freeze.datasets.synthetic.occupancy import Occupancy
from pcdet_freeze.datasets.synthetic.road import Street, draw_street
from pcdet_freeze.datasets.synthetic.shapes import HEXAHEDRON, Ground, Solid, solid, solid_table

SCENE_TAG = 0x5CE7E
"""First word of each seed, which separates these random numbers from those of other generators."""


@dataclass(frozen=True)
class Scene:
    """A scene for the ray caster.

    ``solids`` (S,) SOLID, those of object g are ``offsets[g] ... offsets[g + 1]``; ``hull`` (G,) SOLID:
    enlarged boxes of the objects; ``boxes`` (G, 7) float64 x, y, z (centre), dx, dy, dz, heading in the LiDAR
    frame, metres and radians; ``names`` (G,) Car, Pedestrian or Cyclist; ``start`` azimuth of the first
    column, radians; ``key`` of the noise.
    """

    street: Street
    solids: NDArray[np.void]
    hull: NDArray[np.void]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float64]
    names: list[str]
    start: float
    key: int


@dataclass
class _Site:
    """A scene under construction."""

    rng: RandomState
    street: Street
    reach: float
    free: Occupancy = field(default_factory=Occupancy)
    labelled: list[tuple[str, Assembly]] = field(default_factory=list)
    rest: list[Assembly] = field(default_factory=list)

    def start(
        self, label: str, x: float, y: float, yaw: float, size: Size, margin: float = 0.3
    ) -> Assembly | None:
        """An empty assembly at (x, y) on the ground, or None if the place is occupied."""
        if not self.free.take(x, y, yaw, size[0], size[1], margin):
            return None
        return Assembly((x, y, self.street.ground.height(x, y)), wrap(yaw), LABEL[label], size)

    def label(self, name: str, assembly: Assembly) -> None:
        assembly.owner = len(self.labelled)
        self.labelled.append((name, assembly))

    def add_car(self, x: float, y: float, yaw: float, margin: float = 0.3) -> None:
        size, bonnet, boot = objects.car_size(self.rng)
        car = self.start("car", x, y, yaw, size, margin)
        if car is not None:
            self.label("Car", car)
            objects.build_car(self.rng, car, bonnet, boot)

    def clear_of_road(self, x: float, y: float, yaw: float, size: Size) -> bool:
        """True if neither the centre nor the outline of the rectangle is on asphalt."""
        ground, cos, sin = self.street.ground, math.cos(yaw), math.sin(yaw)
        for a, b in ((0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0)):
            along, across = a * size[0] / 2, b * size[1] / 2
            if ground.on_road(x + along * cos - across * sin, y + along * sin + across * cos):
                return False
        return True

    def beside(self, near: float, far: float) -> tuple[float, float, float]:
        """A random point ``near`` to ``far`` m behind a kerb: x, y, heading of the road there."""
        ground, away = self.street.ground, self.rng.uniform(near, far)
        offset = ground.left + away if self.rng.uniform() < 0.5 else ground.right - away
        return ground.at(self.rng.uniform(-self.reach, self.reach), offset)


def draw_scene(seed: int, index: int, *, sensor_height: float, reach: float, attempt: int = 0) -> Scene:
    """Draw the scene of (seed, index); objects are placed within about ``reach`` m.

    A higher ``attempt`` draws another scene with more parked cars and fewer occluding objects.
    """
    rng = RandomState([SCENE_TAG, seed & 0xFFFFFFFF, index, attempt])
    site = _Site(rng, draw_street(rng, sensor_height, busy=attempt > 0), reach)
    site.free.take(0.0, 0.0, 0.0, 5.0, 2.2, 0.5)  # the ego vehicle
    _houses(site)
    _traffic(site)
    _parked(site, 0.5 + 0.08 * min(attempt, 5))
    _stray_cars(site)
    _people(site)
    _clutter(site, 3 if attempt > 3 else 12)
    _posts(site)
    _plants(site, 3 if attempt > 3 else 14)
    return _finish(site)


def _houses(site: _Site) -> None:
    ground, rng = site.street.ground, site.rng
    for kerb, walk, sign in ((ground.left, ground.walk_left, 1), (ground.right, ground.walk_right, -1)):
        back, x = rng.uniform(0.5, 14.0), -site.reach - rng.uniform(0.0, 15.0)
        while x < site.reach:
            long, deep, high = rng.uniform(7.0, 22.0), rng.uniform(6.0, 12.0), rng.uniform(3.5, 14.0)
            offset = kerb + sign * (walk + back + rng.uniform(0.0, 2.5) + deep / 2)
            px, py, heading = ground.at(x + long / 2, offset)
            size = (long, deep, high)
            if rng.uniform() < 0.8 and site.clear_of_road(px, py, heading, size):
                house = site.start("building", px, py, heading, size, 0.1)
                if house is not None:
                    objects.build_block(rng, house)
                    site.rest.append(house)
            x += long + (rng.uniform(0.0, 1.0) if rng.uniform() < 0.4 else rng.uniform(2.0, 12.0))


def _traffic(site: _Site) -> None:
    """Cars in the lanes and on the side road."""
    ground, rng = site.street.ground, site.rng
    for lane in site.street.lanes:
        x, gap = -site.reach + rng.uniform(0.0, 15.0), rng.uniform(8.0, 32.0)
        while x < site.reach:
            px, py, heading = ground.at(x, lane.offset + rng.uniform(-0.35, 0.35))
            turn = rng.normal(0.0, 0.03) + (0.0 if lane.direction > 0 else math.pi)
            site.add_car(px, py, heading + turn)
            x += 4.5 + gap * rng.uniform(0.4, 1.6)
    if ground.junction_side:
        ax, ay = ground.junction_uy, -ground.junction_ux  # along the side road, away from the street
        away = max(abs(ground.left), abs(ground.right)) + 3.5
        while away < site.reach:
            side = float(rng.choice((-1.0, 1.0)))
            shift = side * ground.junction_half * rng.uniform(0.4, 0.6)
            yaw = math.atan2(ay, ax) + (math.pi if side > 0 else 0.0) + rng.normal(0.0, 0.08)
            px = ground.junction_x + away * ax + shift * ground.junction_ux
            py = ground.junction_y + away * ay + shift * ground.junction_uy
            site.add_car(px, py, yaw)
            away += rng.uniform(6.0, 22.0)


def _parked(site: _Site, filled: float) -> None:
    ground, rng = site.street.ground, site.rng
    for bay in site.street.bays:
        pitch = rng.uniform(2.5, 2.9) if bay.across else rng.uniform(5.3, 6.6)
        share, slant = filled * rng.uniform(0.6, 1.3), float(rng.choice((0.0, 0.0, 0.5, -0.5)))
        x = -site.reach + rng.uniform(0.0, pitch)
        while x < site.reach:
            px, py, heading = ground.at(x, bay.offset + rng.uniform(-0.2, 0.2))
            if not _blocks_junction(ground, px, py, bay.offset) and rng.uniform() < share:
                turn = math.pi / 2 + slant if bay.across else 0.0
                flip = math.pi if rng.uniform() < 0.35 else 0.0
                site.add_car(px, py, heading + turn + flip + rng.normal(0.0, 0.03), 0.12)
            x += pitch


def _blocks_junction(ground: Ground, x: float, y: float, offset: float) -> bool:
    """True if a car parked there would block the side road."""
    across = (x - ground.junction_x) * ground.junction_ux + (y - ground.junction_y) * ground.junction_uy
    return ground.junction_side * offset > 0 and abs(across) < ground.junction_half + 3.0


def _stray_cars(site: _Site) -> None:
    """Cars in driveways and yards, at any heading."""
    for _ in range(site.rng.randint(0, 6)):
        x, y, heading = site.beside(3.0, 13.0)
        yaw = heading + math.pi / 2 * site.rng.randint(4) + site.rng.normal(0.0, 0.4)
        if site.clear_of_road(x, y, yaw, (4.5, 1.8, 1.5)):
            site.add_car(x, y, yaw)


def _people(site: _Site) -> None:
    rng = site.rng
    for _ in range(rng.randint(3, 13)):
        x, y, heading = site.beside(0.4, 4.0) if rng.uniform() < 0.8 else site.beside(-6.0, -0.5)
        along = math.pi * rng.randint(2) + rng.normal(0.0, 0.3)
        yaw = heading + along if rng.uniform() < 0.7 else rng.uniform(-math.pi, math.pi)
        person = site.start("pedestrian", x, y, yaw, objects.person_size(rng), 0.1)
        if person is not None:
            site.label("Pedestrian", person)
            objects.build_person(rng, person)
    for _ in range(rng.randint(1, 9)):
        x, y, heading = site.beside(-2.5, 2.0)
        yaw = heading + math.pi * rng.randint(2) + rng.normal(0.0, 0.15)
        rider = site.start("cyclist", x, y, yaw, objects.rider_size(rng), 0.15)
        if rider is not None:
            site.label("Cyclist", rider)
            objects.build_rider(rng, rider)


def _clutter(site: _Site, most: int) -> None:
    rng = site.rng
    for _ in range(rng.randint(most // 3, most + 1)):
        kind, size = objects.clutter_size(rng)
        roadside = kind in ("container", "trailer") and rng.uniform() < 0.5
        x, y, heading = site.beside(-1.6, -1.2) if roadside else site.beside(0.6, 10.0)
        yaw = heading + (0.0 if roadside else math.pi / 2 * rng.randint(2)) + rng.normal(0.0, 0.08)
        if not roadside and not site.clear_of_road(x, y, yaw, size):
            continue
        assembly = site.start("clutter", x, y, yaw, size)
        if assembly is not None:
            objects.build_clutter(rng, kind, assembly)
            site.rest.append(assembly)


def _posts(site: _Site) -> None:
    for _ in range(site.rng.randint(3, 12)):
        high, thick = float(site.rng.choice((2.6, 3.2, 6.0, 8.0))), site.rng.uniform(0.08, 0.24)
        _place(site, "pole", (thick, thick, high), (0.4, 1.0), objects.build_post)


def _plants(site: _Site, most: int) -> None:
    for _ in range(site.rng.randint(2, most + 1)):
        if site.rng.uniform() < 0.6:
            _place(site, "vegetation", (0.5, 0.5, 5.0), (0.8, 12.0), objects.build_tree)
        else:
            size = (site.rng.uniform(1.0, 8.0), site.rng.uniform(0.7, 1.8), site.rng.uniform(0.7, 2.0))
            _place(site, "vegetation", size, (1.5, 12.0), objects.build_bush)


def _place(
    site: _Site,
    label: str,
    size: Size,
    away: tuple[float, float],
    build: Callable[[RandomState, Assembly], None],
) -> None:
    """Place an object beside the road, aligned with it, if the place is free."""
    x, y, heading = site.beside(*away)
    if site.clear_of_road(x, y, heading, size):
        assembly = site.start(label, x, y, heading, size, 0.1)
        if assembly is not None:
            build(site.rng, assembly)
            site.rest.append(assembly)


def _finish(site: _Site) -> Scene:
    rows: list[Solid] = []
    hull: list[Solid] = []
    offsets, boxes = [0], []
    for _, assembly in site.labelled:
        rows += assembly.solids
        offsets.append(len(rows))
        (x, y, z), (length, width, height) = assembly.foot, assembly.size
        boxes.append((x, y, z + height / 2, length, width, height, assembly.yaw))
        enlarged = (length / 2 + 0.3, width / 2 + 0.3, height / 2 + 0.3)
        hull.append(solid(HEXAHEDRON, boxes[-1][:3], enlarged, assembly.yaw, label=0, reflectivity=0.0))
    for assembly in site.rest:
        rows += assembly.solids
    start, key = site.rng.uniform(-math.pi, math.pi), site.rng.randint(0, 2**32, size=2, dtype=np.uint64)
    return Scene(
        site.street,
        solid_table(rows),
        solid_table(hull),
        np.array(offsets, np.int64),
        np.array(boxes, np.float64).reshape(-1, 7),
        [name for name, _ in site.labelled],
        start,
        int(key[0]) << 32 | int(key[1]),
    )
