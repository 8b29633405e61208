"""DATA_CONFIG of PandaSetDataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pcdet_freeze.datasets.labels.label_settings import SemanticSettings, cell_size_faults
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.utils.settings.rules import Count, Length, Name, Rule, not_empty, whole
from pcdet_freeze.utils.settings.sections import Section


def is_number(text: str) -> bool:
    """Whether ``text`` is ASCII digits alone; ``str.isdigit`` takes superscripts too, which int does not."""
    return text.isascii() and text.isdecimal()


def _is_sweep(name: str) -> bool:
    scene, slash, number = name.partition("/")
    return bool(scene) and (not slash or is_number(number))


Sweeps = Annotated[
    tuple[Annotated[str, Rule("<scene> or <scene>/<sweep>, in quotes", _is_sweep)], ...],
    Rule('a list of scenes ("002": all of its sweeps) and sweeps (002/00)', bool),
]


def _is_class_map(given: Mapping[str, Sequence[str]]) -> bool:
    names = [name for names in given.values() for name in names]
    return bool(given) and len(names) == len(set(names))


ClassMap = Annotated[
    dict[str, tuple[Name, ...]],
    Rule(
        "a section of names and lists of PandaSet's labels, each in one list",
        _is_class_map,
        advice="CLASS_MAP: {Car: [Car, Pickup Truck]}",
    ),
]


@dataclass(frozen=True)
class LaneLineSettings(Section):
    """``LANE``: how points of lane markings become lines and lane maps."""

    cell_size: Length
    """metres"""
    width: Length = 0.3
    """metres that a line is wide in the lane map"""
    max_gap: Length = 12.0
    """metres between two points of a line: dashes leave gaps"""
    min_length: Length = 4.0
    """metres of the shortest line"""
    max_lines: Annotated[int, whole(1, 255)] = 8
    """the longest lines of a sweep that has more; the lane head has as many NUM_LANES"""


@dataclass(frozen=True, kw_only=True)
class PandaSetSettings(DataSettings):
    """DATA_CONFIG of PandaSetDataset; DATA_PATH holds one folder per scene."""

    sweeps: Modes[Sweeps]
    sensors: Annotated[
        tuple[Literal[0, 1], ...], not_empty("a list of 0 (spinning) and 1 (forward)", "[0] or [0, 1]")
    ] = (0,)
    class_map: ClassMap | None = None
    """PandaSet's labels by the name that they get here; others keep their own"""
    semantic: SemanticSettings | None = None
    """point classes; LABEL_MAP lists the numbers of PandaSet's classes. null: no point labels"""
    lane: LaneLineSettings | None = None
    """null: no lane maps"""
    min_points: Annotated[int, whole(0)] = 5
    """boxes with fewer points get no training box, and do not count in the evaluation"""
    repeat: Count = 1
    """how often a training epoch goes through the sweeps"""

    def faults(self) -> Iterator[str]:
        """Point labels without their numbers, cells that do not fit the range."""
        if self.semantic is not None and self.semantic.label_map is None:
            yield "SEMANTIC.LABEL_MAP is required: it lists the numbers of PandaSet's classes, 1 to 42"
        if self.lane is not None:
            yield from cell_size_faults(self.lane.cell_size, self.point_cloud_range)
