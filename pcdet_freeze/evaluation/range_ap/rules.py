"""Classes, minimum overlaps and distances; which labels count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OWN_OVERLAP = 0.5
"""minimum overlap of a class that the benchmark does not have"""
DISTANCES = (
    ("overall", 0.0, math.inf),
    ("0-30m", 0.0, 30.0),
    ("30-50m", 30.0, 50.0),
    ("50m-inf", 50.0, math.inf),
)
"""name, and range of the distance of a box's middle from the origin, metres"""
_ONCE = {"Vehicle": 0.7, "Pedestrian": 0.3, "Cyclist": 0.5}
_ONCE_VEHICLES = ("Car", "Bus", "Truck")
_WAYMO = {"Vehicle": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5, "Sign": 0.5}


@dataclass(frozen=True)
class RangeClass:
    """A row of the table."""

    title: str
    names: tuple[str, ...]
    """classes of labels and detections that are this one"""
    min_overlap: float
    """3D intersection over union, which a match exceeds"""
    level: int = 0
    """labels that are harder than this level do not count; 0: all count"""


@dataclass(frozen=True)
class Rules:
    """A benchmark."""

    title: str
    prefix: str
    """of the keys in the dict"""
    classes: tuple[RangeClass, ...]
    max_turn: float = math.pi
    """a match has a heading within this angle, radians"""
    ground_distance: bool = False
    """distances are in x and y alone"""
    note: str = ""


def once_rules(class_names: Sequence[str], overlaps: Mapping[str, float]) -> Rules:
    """ONCE: the classes Car, Bus and Truck are one, Vehicle, which comes first."""
    vehicles = tuple(name for name in class_names if name in _ONCE_VEHICLES)
    least = {**_ONCE, **overlaps}
    groups = [("Vehicle", vehicles)] if vehicles else []
    groups += [(name, (name,)) for name in class_names if name not in vehicles]
    classes = tuple(RangeClass(title, names, least.get(title, OWN_OVERLAP)) for title, names in groups)
    return Rules("ONCE, orientation-aware AP (50 recall points)", "AP_", classes, math.pi / 2)


def waymo_rules(class_names: Sequence[str], overlaps: Mapping[str, float]) -> Rules:
    """Each class twice: labels of level 1 (more than five points), and those of level 2 too."""
    least = {**_WAYMO, **overlaps}
    classes = tuple(
        RangeClass(f"{name}_L{level}", (name,), least.get(name, OWN_OVERLAP), level)
        for name in class_names
        for level in (1, 2)
    )
    return Rules(
        "Waymo, APPROXIMATE AP (50 recall points)",
        "approximate_AP_",
        classes,
        ground_distance=True,
        note=(
            "An approximation, not Waymo's metric: for figures to publish, give result.pkl to OpenPCDet's "
            "waymo_eval.py, which runs the official one (waymo-open-dataset).\n"
        ),
    )
