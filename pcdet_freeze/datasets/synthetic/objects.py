"""Objects as assemblies of solids: cars, people, and distractors of similar shape.

Each builder draws its parameters from ``rng`` and adds solids around a foot point on the ground. ``size`` is
(length, width, height) of the bounding box in metres; the heading is its x axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from numpy.random import RandomState

from pcdet_freeze.datasets.synthetic.labels import LABEL
from pcdet_freeze.datasets.synthetic.shapes import CYLINDER, ELLIPSOID, HEXAHEDRON, Solid, solid

Size = tuple[float, float, float]

Span = tuple[float, float]
CAR_SHARES = (0.30, 0.28, 0.17, 0.17, 0.08)
CAR_KINDS: tuple[tuple[Span, Span, Span, float, float], ...] = (
    # ranges of length, width, height in metres; bonnet and boot relative to the length
    ((3.55, 4.20), (1.60, 1.78), (1.44, 1.60), 0.24, 0.03),
    ((4.35, 5.00), (1.74, 1.92), (1.38, 1.50), 0.27, 0.17),
    ((4.25, 4.85), (1.74, 1.88), (1.42, 1.55), 0.26, 0.02),
    ((4.15, 4.85), (1.78, 1.98), (1.60, 1.82), 0.25, 0.03),
    ((4.30, 4.95), (1.80, 1.98), (1.72, 1.95), 0.16, 0.01),
)


@dataclass
class Assembly:
    """Solids of one object: foot point (x, y, z), yaw, semantic label, owner, size of the bounding box."""

    foot: tuple[float, float, float]
    yaw: float
    label: int
    size: Size
    owner: int = -1
    solids: list[Solid] = field(default_factory=list)

    def add(
        self,
        kind: int,
        at: tuple[float, float, float],
        half: tuple[float, float, float],
        reflectivity: float,
        *,
        yaw: float = 0.0,
        lean: tuple[float, float, float] = (0.0, 0.0, 0.0),
        density: float = 0.0,
        glass: float = 0.0,
    ) -> None:
        """Add a solid with its centre ``at`` (forward, left, up from the foot) in the assembly's frame."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        x, y, z = self.foot
        centre = (x + at[0] * cos - at[1] * sin, y + at[0] * sin + at[1] * cos, z + at[2])
        self.solids.append(
            solid(
                *(kind, centre, half, self.yaw + yaw),
                label=self.label,
                reflectivity=reflectivity,
                owner=self.owner,
                lean=lean,
                density=density,
                glass=glass,
            )
        )


def car_size(rng: RandomState) -> tuple[Size, float, float]:
    """(length, width, height), bonnet length and boot length of a random car, metres."""
    length, width, height, bonnet, boot = CAR_KINDS[rng.choice(len(CAR_KINDS), p=CAR_SHARES)]
    size = (rng.uniform(*length), rng.uniform(*width), rng.uniform(*height))
    return size, bonnet * size[0], boot * size[0]


def build_car(rng: RandomState, car: Assembly, bonnet: float, boot: float) -> None:
    """Add body, cabin with windows, roof and wheels."""
    length, width, height = car.size
    paint = float(rng.choice((rng.uniform(0.05, 0.15), rng.uniform(0.2, 0.4), rng.uniform(0.45, 0.8))))
    floor, belt = rng.uniform(0.17, 0.27), height * rng.uniform(0.54, 0.62)
    half = (length / 2, width / 2, (belt - floor) / 2)
    car.add(HEXAHEDRON, (0, 0, (belt + floor) / 2), half, paint, lean=(0.18, 0.10, 0.06))
    front, back = length / 2 - bonnet, -length / 2 + boot + 0.08
    rake, tail = rng.uniform(0.45, 0.85), rng.uniform(0.25, 0.6)
    roof = height - 0.11
    middle, long, share = (front + back) / 2, (front - back) / 2, (roof - belt) / (height - belt)
    lean = (rake * share, tail * share, 0.2 * share)
    cabin = (long, width / 2 - 0.06, (roof - belt) / 2)
    car.add(HEXAHEDRON, (middle, 0, (roof + belt) / 2), cabin, 0.12, lean=lean, glass=0.6)
    top = (long - (lean[0] + lean[1]) / 2, width / 2 - 0.06 - lean[2], 0.055)
    crown = (middle + (lean[1] - lean[0]) / 2, 0, height - 0.055)
    car.add(HEXAHEDRON, crown, top, paint, lean=(0.15, 0.1, 0.05))
    for end in (0.31 * length, -0.29 * length):
        for side in (width / 2 - 0.12, 0.12 - width / 2):
            car.add(HEXAHEDRON, (end, side, 0.31), (0.31, 0.1, 0.31), 0.06, lean=(0.15, 0.15, 0.0))


def person_size(rng: RandomState) -> Size:
    """Size of a pedestrian; one in eight is a child."""
    height = rng.uniform(1.1, 1.45) if rng.uniform() < 0.125 else rng.uniform(1.55, 1.92)
    return height * rng.uniform(0.3, 0.52), height * rng.uniform(0.3, 0.4), height


def build_person(rng: RandomState, person: Assembly) -> None:
    """Add two legs, torso, arms and head."""
    length, width, height = person.size
    trousers, jacket = rng.uniform(0.08, 0.5), rng.uniform(0.08, 0.7)
    stride = length / 2 - 0.12
    for sign in (1, -1):
        leg = (0.07, 0.07, 0.24 * height)
        person.add(CYLINDER, (sign * stride * 0.8, sign * 0.09, 0.24 * height), leg, trousers)
        arm = (0.06, 0.05, 0.17 * height)
        person.add(ELLIPSOID, (-sign * stride * 0.7, sign * (width / 2 - 0.05), 0.62 * height), arm, jacket)
    person.add(ELLIPSOID, (0, 0, 0.64 * height), (0.15, width / 2 - 0.07, 0.22 * height), jacket)
    person.add(ELLIPSOID, (0.02, 0, 0.935 * height), (0.1, 0.085, 0.065 * height), 0.35)


def rider_size(rng: RandomState) -> Size:
    """Size of a cyclist on a bicycle."""
    return rng.uniform(1.6, 1.9), rng.uniform(0.5, 0.7), rng.uniform(1.6, 1.85)


def build_rider(rng: RandomState, rider: Assembly) -> None:
    """Add porous wheels and frame, a handlebar and a rider."""
    length, width, height = rider.size
    jacket, steel = rng.uniform(0.08, 0.7), rng.uniform(0.1, 0.5)
    for end in (length / 2 - 0.34, 0.34 - length / 2):
        rider.add(HEXAHEDRON, (end, 0, 0.34), (0.33, 0.025, 0.33), 0.15, lean=(0.1, 0.1, 0.0), density=9.0)
    rider.add(HEXAHEDRON, (0, 0, 0.6), (0.45, 0.03, 0.2), steel, density=12.0)
    rider.add(HEXAHEDRON, (0.3 * length, 0, 1.0), (0.04, width / 2 - 0.02, 0.03), steel)
    for sign in (1, -1):
        leg = (0.05 + sign * 0.1, sign * 0.1, 0.26 * height + 0.12)
        rider.add(CYLINDER, leg, (0.08, 0.07, 0.24 * height), jacket)
    rider.add(ELLIPSOID, (0.05, 0, 0.72 * height), (0.2, width / 2 - 0.1, 0.19 * height), jacket)
    rider.add(ELLIPSOID, (0.2, 0, 0.93 * height), (0.12, 0.1, 0.07 * height), rng.uniform(0.2, 0.8))


def build_bush(rng: RandomState, bush: Assembly) -> None:
    """Add two or three porous clumps that fill the box."""
    length, width, height = bush.size
    leaf, dense = rng.uniform(0.2, 0.5), rng.uniform(2.5, 7.0)
    for _ in range(rng.randint(2, 4)):
        share = rng.uniform((0.3, 0.35, 0.35), 0.5)
        a, b, c = length * float(share[0]), width * float(share[1]), height * float(share[2])
        half, shift = (a, b, c), rng.uniform(-1, 1, size=2)
        at = (float(shift[0]) * (length / 2 - a), float(shift[1]) * (width / 2 - b), c)
        bush.add(ELLIPSOID, at, half, leaf, density=dense)


def build_tree(rng: RandomState, tree: Assembly) -> None:
    """Add a trunk and a crown of porous clumps."""
    trunk, spread = rng.uniform(1.8, 3.2), rng.uniform(0.9, 2.2)
    thick = rng.uniform(0.1, 0.25)
    tree.add(CYLINDER, (0, 0, trunk / 2 + 0.4), (thick, thick, trunk / 2 + 0.5), rng.uniform(0.15, 0.3))
    leaf, dense = rng.uniform(0.25, 0.5), rng.uniform(0.5, 1.6)
    for _ in range(rng.randint(2, 4)):
        half = spread * rng.uniform((0.6, 0.6, 0.5), (1.0, 1.0, 0.9))
        at = spread * rng.uniform((-0.6, -0.6, 0.0), (0.6, 0.6, 0.0))
        at[2] = trunk + half[2] * rng.uniform(0.8, 1.3)
        tree.add(ELLIPSOID, (at[0], at[1], at[2]), (half[0], half[1], half[2]), leaf, density=dense)


def build_block(rng: RandomState, block: Assembly, *, round_: bool = False, lean: float = 0.0) -> None:
    """Add one box or upright cylinder of the given size: container, bin, wall, house or pillar."""
    length, width, height = block.size
    half = (length / 2, width / 2, height / 2)
    kind = CYLINDER if round_ else HEXAHEDRON
    block.add(kind, (0, 0, height / 2), half, rng.uniform(0.1, 0.65), lean=(lean, lean, lean))


def build_trailer(rng: RandomState, trailer: Assembly) -> None:
    """Add a box with a high floor on wheels, about as long as a car."""
    length, width, height = trailer.size
    paint = rng.uniform(0.1, 0.8)
    trailer.add(HEXAHEDRON, (0, 0, height / 2 + 0.28), (length / 2, width / 2, height / 2 - 0.28), paint)
    for side in (width / 2 - 0.1, 0.1 - width / 2):
        trailer.add(HEXAHEDRON, (0, side, 0.3), (0.5, 0.1, 0.3), 0.06)
    trailer.add(HEXAHEDRON, (length / 2 + 0.5, 0, 0.45), (0.5, 0.06, 0.05), 0.2)


def build_post(rng: RandomState, post: Assembly) -> None:
    """Add a lamp post, or a post with a traffic sign."""
    height, thick = post.size[2], post.size[0] / 2
    post.add(CYLINDER, (0, 0, height / 2), (thick, thick, height / 2), rng.uniform(0.2, 0.5))
    if height < 4.0:
        plate = (0.015, rng.uniform(0.25, 0.45), rng.uniform(0.25, 0.4))
        post.add(HEXAHEDRON, (-thick - 0.02, 0, height - plate[2]), plate, rng.uniform(0.6, 1.0))


CLUTTER: tuple[tuple[str, tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ("container", (1.4, 6.0), (1.4, 2.4), (1.2, 2.6)),
    ("bin", (0.45, 1.2), (0.45, 0.75), (0.95, 1.35)),
    ("pillar", (0.5, 1.1), (0.5, 1.1), (1.6, 2.8)),
    ("bollard", (0.15, 0.3), (0.15, 0.3), (0.7, 1.2)),
    ("trailer", (2.2, 4.8), (1.5, 2.1), (1.6, 2.6)),
    ("wall", (3.0, 9.0), (0.2, 0.35), (0.7, 1.9)),
    ("bush", (0.8, 4.2), (0.8, 1.9), (0.8, 1.8)),
    ("cabinet", (0.5, 1.4), (0.35, 0.6), (1.1, 1.8)),
)


def clutter_size(rng: RandomState) -> tuple[str, Size]:
    """Kind and size of a random object without a box label."""
    kind, length, width, height = CLUTTER[rng.randint(len(CLUTTER))]
    size = (rng.uniform(*length), rng.uniform(*width), rng.uniform(*height))
    return kind, ((size[0], size[0], size[2]) if kind in ("pillar", "bollard") else size)


def build_clutter(rng: RandomState, kind: str, assembly: Assembly) -> None:
    """Add the solids of a kind drawn by :func:`clutter_size`."""
    if kind == "bush":
        assembly.label = LABEL["vegetation"]
        build_bush(rng, assembly)
    elif kind == "trailer":
        build_trailer(rng, assembly)
    else:
        build_block(rng, assembly, round_=kind in ("pillar", "bollard"), lean=-0.05 if kind == "bin" else 0.0)
