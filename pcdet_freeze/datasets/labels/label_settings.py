"""DATA_CONFIG.SEMANTIC and DATA_CONFIG.LANE: labels that lie beside the frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from pcdet_freeze.datasets.frames import IGNORE
from pcdet_freeze.utils.settings.rules import Length, Name, Rule
from pcdet_freeze.utils.settings.sections import Section

IGNORED = "ignore"
"""the name that LABEL_MAP gives to the values of points without a class"""

Value = Annotated[int, Rule("a whole number from 0 to 65535", lambda value: 0 <= value < 2**16)]


def _is_class_list(names: Sequence[str]) -> bool:
    return 0 < len(names) <= IGNORE and len(set(names)) == len(names)


@dataclass(frozen=True)
class SemanticSettings(Section):
    """``SEMANTIC``: classes of points, and how files write them."""

    classes: Annotated[tuple[Name, ...], Rule(f"a list of 1 to {IGNORE} different names", _is_class_list)]
    """semantic class 0, 1, ..."""
    label_map: dict[str, Value | tuple[Value, ...]] | None = None
    """class, or ``ignore`` -> values in the files; null: values are classes"""
    folder: Name = "semantic"

    @property
    def values(self) -> Mapping[int, int] | None:
        """Value in a file -> class or 255; None: values are classes."""
        return None if self.label_map is None else {value: number for value, number in self._pairs()}

    def _pairs(self) -> Iterator[tuple[int, int]]:
        for name, given in (self.label_map or {}).items():
            number = self.classes.index(name) if name in self.classes else IGNORE
            yield from ((value, number) for value in ([given] if isinstance(given, int) else given))

    def faults(self) -> Iterator[str]:
        """Names that are no class, values that are given twice."""
        for name in self.label_map or {}:
            if name not in self.classes and name.lower() != IGNORED:
                known = ", ".join((*self.classes, IGNORED))
                yield f"LABEL_MAP.{name} is not a class: {name!r} must be one of {known}"
        values = [value for value, _ in self._pairs()]
        for value in dict.fromkeys(value for value in values if values.count(value) > 1):
            yield f"LABEL_MAP must give each value to one class; {value} is listed twice"


@dataclass(frozen=True)
class LaneFiles(Section):
    """``LANE`` of a data set whose lane maps are files."""

    cell_size: Length
    """metres"""
    folder: Name = "lanes"


@dataclass(frozen=True)
class LaneSettings:
    """``shape``: (H, W) of every lane map, the range divided by CELL_SIZE."""

    shape: tuple[int, int]
    folder: str = "lanes"


def lane_map_shape(cell_size: float, limits: np.ndarray | Sequence[float]) -> tuple[int, int]:
    """(H, W) of a map of the range (6,) in cells of ``cell_size`` metres, which must divide it."""
    height, width = (round((float(limits[axis + 3]) - float(limits[axis])) / cell_size) for axis in (1, 0))
    return height, width


def forms_of(settings: Any) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Classes of SEMANTIC, and (H, W) of the lane maps of LANE, of a DATA_CONFIG that may set either to null.

    Args:
        settings: with ``semantic`` and ``lane`` (sections or None) and ``point_cloud_range``.
    """
    semantic, lane = settings.semantic, settings.lane
    shape = lane_map_shape(lane.cell_size, settings.point_cloud_range) if lane is not None else None
    return tuple(semantic.classes) if semantic is not None else (), shape


def cell_size_faults(cell_size: float, limits: Sequence[float]) -> Iterator[str]:
    """A fault where LANE.CELL_SIZE does not divide the range (6,) in x and y."""
    extent = [limits[axis + 3] - limits[axis] for axis in (0, 1)]
    if any(abs(length / cell_size - round(length / cell_size)) > 1e-3 for length in extent):
        yield (
            f"LANE.CELL_SIZE must divide POINT_CLOUD_RANGE in x and y ({extent[0]:g} by {extent[1]:g} m); "
            f"got {cell_size}"
        )
