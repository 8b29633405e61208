"""nuScenes' categories, the ten classes of its detection benchmark, and the attributes that it scores."""

from __future__ import annotations

import numpy as np

CATEGORIES = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""category -> class of the detection benchmark (nuscenes.org/object-detection)"""
DETECTION_CLASSES = tuple(dict.fromkeys(CATEGORIES.values()))
IGNORED = "ignore"
"""the name that OpenPCDet gives to boxes of other categories"""
MOVING = 0.2
"""m/s above which an object moves"""
_VEHICLE, _CYCLE = ("vehicle.parked", "vehicle.moving"), ("cycle.without_rider", "cycle.with_rider")
ATTRIBUTES = {
    **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle"), _VEHICLE),
    "bus": ("vehicle.stopped", "vehicle.moving"),
    **dict.fromkeys(("bicycle", "motorcycle"), _CYCLE),
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
}
"""class -> attribute of a predicted box that stands, and of one that moves"""


def detection_name(category: str) -> str:
    """Class of a category; IGNORED where the benchmark has none."""
    return CATEGORIES.get(category, IGNORED)


def attribute_of(name: str, velocity: np.ndarray) -> str:
    """The likely attribute of a box of class ``name`` with ``velocity`` (2,) m/s; "" where it has none."""
    moves = float(np.hypot(*velocity)) > MOVING
    return ATTRIBUTES[name][moves] if name in ATTRIBUTES else ""
