"""SemanticKITTI's classes: numbers in the label files -> learned classes, and back for a submission.

Source: the data set's own tables, https://semantic-kitti.org/dataset.html (single scan and, with moving
classes, multiple scans).
"""

from __future__ import annotations

from pcdet_freeze.datasets.labels.label_settings import IGNORED, SemanticSettings

IGNORED_NUMBERS = (0, 1, 52, 99)
"""unlabeled, outlier, other-structure, other-object"""
CLASSES: dict[str, tuple[int, ...]] = {
    "car": (10,),
    "bicycle": (11,),
    "motorcycle": (15,),
    "truck": (18,),
    "other-vehicle": (20, 13, 16),
    "person": (30,),
    "bicyclist": (31,),
    "motorcyclist": (32,),
    "road": (40, 60),
    "parking": (44,),
    "sidewalk": (48,),
    "other-ground": (49,),
    "building": (50,),
    "fence": (51,),
    "vegetation": (70,),
    "trunk": (71,),
    "terrain": (72,),
    "pole": (80,),
    "traffic-sign": (81,),
}
"""class -> numbers in the files; the first one is that of a submission"""
MOVING: dict[str, tuple[int, ...]] = {
    "moving-car": (252,),
    "moving-bicyclist": (253,),
    "moving-person": (254,),
    "moving-motorcyclist": (255,),
    "moving-other-vehicle": (259, 256, 257),
    "moving-truck": (258,),
}
"""the same for objects that move; without them they belong to the class without ``moving-``"""


def classes_of(moving: bool) -> dict[str, tuple[int, ...]]:
    """Class -> numbers, for 19 classes, or 25 with ``moving``."""
    if moving:
        return {**CLASSES, **MOVING}
    return {name: (*numbers, *MOVING.get(f"moving-{name}", ())) for name, numbers in CLASSES.items()}


def semantic_settings(moving: bool) -> SemanticSettings:
    """The classes as SEMANTIC of a config would give them."""
    found = classes_of(moving)
    label_map: dict[str, int | tuple[int, ...]] = {**found, IGNORED: IGNORED_NUMBERS}
    return SemanticSettings(classes=tuple(found), label_map=label_map, folder="labels")
