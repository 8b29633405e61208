"""Classes, difficulties and minimum overlaps of the benchmark, and which objects count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.evaluation.kitti.tables import Detections, Labels

COUNTED, IGNORED, OTHER = 0, 1, -1
"""State of an object: counted; can be matched without effect; not considered."""

States = NDArray[np.int8]


@dataclass(frozen=True)
class KittiClass:
    """A class, the similar class whose labels are ignored, and the minimum overlaps of a match."""

    name: str
    neighbour: str | None
    image_overlap: tuple[float, float]
    """Strict, loose: for image and aos."""
    box_overlap: tuple[float, float]
    """Strict, loose: for bev and 3d."""

    def min_overlap(self, metric: str) -> tuple[float, float]:
        """Strict and loose overlap of a metric: image, bev, 3d or aos."""
        return self.box_overlap if metric in ("bev", "3d") else self.image_overlap


@dataclass(frozen=True)
class Difficulty:
    """Limits of the labels that count; harder ones are ignored."""

    name: str
    min_height: float
    """Pixels; labels must be taller, detections at least as tall."""
    max_occlusion: int
    max_truncation: float


# the number of a class is its position: 0 is Car
CLASSES = (
    KittiClass("Car", "Van", (0.7, 0.7), (0.7, 0.5)),
    KittiClass("Pedestrian", "Person_sitting", (0.5, 0.5), (0.5, 0.25)),
    KittiClass("Cyclist", None, (0.5, 0.5), (0.5, 0.25)),
    KittiClass("Van", None, (0.7, 0.7), (0.7, 0.5)),
    KittiClass("Person_sitting", None, (0.5, 0.5), (0.5, 0.25)),
    KittiClass("Truck", None, (0.7, 0.5), (0.7, 0.5)),
)

DIFFICULTIES = (
    Difficulty("easy", 40, 0, 0.15),
    Difficulty("moderate", 25, 1, 0.3),
    Difficulty("hard", 25, 2, 0.5),
)


OWN_OVERLAP = 0.5
"""strict minimum overlap of a class that the benchmark does not have; the loose one is half of it"""


def find_classes(
    current_classes: str | int | Sequence[str | int], overlaps: Mapping[str, float] | None = None
) -> list[KittiClass]:
    """Classes by name or number, one or several; raises ConfigError for an unknown class.

    With ``overlaps`` (class -> strict minimum overlap) no name is unknown.
    """
    if isinstance(current_classes, (str, int, np.integer)):
        current_classes = [current_classes]
    if len(current_classes) == 0:
        raise ConfigError("KITTI evaluation needs at least one class; got none. Name them, e.g. ['Car'].")
    return [_find_class(name_or_number, overlaps) for name_or_number in current_classes]


def _find_class(name_or_number: str | int, overlaps: Mapping[str, float] | None) -> KittiClass:
    own = overlaps is not None and isinstance(name_or_number, str)
    if overlaps is not None and name_or_number in overlaps:
        return _own_class(str(name_or_number), overlaps[str(name_or_number)])
    for number, known in enumerate(CLASSES):
        if name_or_number == (known.name if isinstance(name_or_number, str) else number):
            return known
    if own:
        return _own_class(str(name_or_number), OWN_OVERLAP)
    names = ", ".join(f"{known.name} ({number})" for number, known in enumerate(CLASSES))
    raise ConfigError(
        f"KITTI evaluation has the classes {names}; got {name_or_number!r}. "
        f"Rename the class to one of these in both lists of annotations, or remove it."
    )


def _own_class(name: str, overlap: float) -> KittiClass:
    neighbour = next((known.neighbour for known in CLASSES if known.name == name), None)
    return KittiClass(name, neighbour, (overlap, overlap), (overlap, overlap / 2))


def label_states(labels: Labels, kitti_class: KittiClass, difficulty: Difficulty) -> States:
    """(K,) COUNTED if a label must be found; IGNORED if it is too hard or of the neighbour class."""
    same = labels.name == kitti_class.name.lower()
    neighbour = (
        (labels.name == kitti_class.neighbour.lower()) if kitti_class.neighbour else np.zeros_like(same)
    )
    hard = (
        (labels.occluded > difficulty.max_occlusion)
        | (labels.truncated > difficulty.max_truncation)
        | (labels.height <= difficulty.min_height)
    )
    return np.select([same & ~hard, same | neighbour], [COUNTED, IGNORED], OTHER).astype(np.int8)


def detection_states(detections: Detections, kitti_class: KittiClass, difficulty: Difficulty) -> States:
    """(K,) IGNORED if a detection is too small, for any class; COUNTED if it is of this class."""
    small = detections.height < difficulty.min_height
    same = detections.name == kitti_class.name.lower()
    return np.select([small, same], [IGNORED, COUNTED], OTHER).astype(np.int8)
