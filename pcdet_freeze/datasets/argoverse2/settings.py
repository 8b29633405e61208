"""DATA_CONFIG of Argoverse2Sweeps and of Argoverse2Dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pcdet_freeze.datasets.labels.label_settings import cell_size_faults
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.utils.settings.rules import Count, Length, Name, Rule, whole
from pcdet_freeze.utils.settings.sections import Section

GROUND, OTHER = "ground", "other"
COLUMNS = ("x", "y", "z", "intensity", "timestamp")
"""of the points of Argoverse2Dataset; timestamp: seconds since the point was measured"""


def _is_sweep(name: str) -> bool:
    log, _, stamp = name.rpartition("/")
    return bool(log) and stamp.isdigit()


Sweeps = Annotated[
    tuple[Annotated[str, Rule("<log>/<timestamp in ns>", _is_sweep)], ...],
    Rule("a list of <log>/<timestamp in ns>, one or more", bool),
]


def _is_class_map(given: Mapping[str, Sequence[str]]) -> bool:
    return bool(given) and not {GROUND, OTHER} & set(given)


ClassMap = Annotated[
    dict[str, tuple[Name, ...]],
    Rule(
        f"a section of names and lists of Argoverse's categories, without {GROUND} and {OTHER}",
        _is_class_map,
        advice="CLASS_MAP: {Car: [REGULAR_VEHICLE]}",
    ),
]


@dataclass(frozen=True)
class BoundarySettings(Section):
    """``LANE``: how lane boundaries are drawn into lane maps."""

    cell_size: Length
    """metres"""
    width: Length = 0.3
    """metres that a line is wide"""
    painted_only: bool = True
    """leave out boundaries without a mark"""
    max_lines: Annotated[int, whole(1, 255)] = 255
    """the longest lines of a sweep that has more; the lane head has as many NUM_LANES"""


@dataclass(frozen=True, kw_only=True)
class SweepSettings(DataSettings):
    """DATA_CONFIG of Argoverse2Sweeps; DATA_PATH holds one folder per log."""

    sweeps: Modes[Sweeps]
    class_map: ClassMap
    """Argoverse's categories by the name that they get here; others keep their own"""
    lane: BoundarySettings
    min_points: Annotated[int, whole(0)] = 5
    """boxes with fewer points get no training box, and do not count in the evaluation"""
    repeat: Count = 1
    """how often a training epoch goes through the sweeps"""

    def faults(self) -> Iterator[str]:
        """Cells that do not fit the range."""
        return cell_size_faults(self.lane.cell_size, self.point_cloud_range)


@dataclass(frozen=True, kw_only=True)
class LogSettings(DataSettings):
    """DATA_CONFIG of Argoverse2Dataset; DATA_PATH holds a folder per split, with one per log."""

    data_split: Modes[Name]
    """names of the folders: train, val, test"""
    interval: Modes[Count] = Modes(1, 1)  # noqa: RUF009 (it is frozen)
    """every how many sweeps of a log one is a frame; those between are older sweeps of frames"""
    max_sweeps: Annotated[int, whole(1)] = 5
    """sweeps of a frame: the annotated one, and those before it"""
    class_map: ClassMap
    """Argoverse's categories by the name that they get here; others keep their own"""
    point_labels: bool = True
    """ground (by the height map of the log), the names of CLASS_MAP (points in boxes), other"""
    lane: BoundarySettings | None = None
    """null: no lane maps"""
    min_points: Annotated[int, whole(0)] = 1
    """boxes with fewer points get no training box; the evaluation counts those with a point"""

    def faults(self) -> Iterator[str]:
        """Cells that do not fit the range, other columns."""
        if self.lane is not None:
            yield from cell_size_faults(self.lane.cell_size, self.point_cloud_range)
        names = self.point_feature_encoding.src_feature_list
        if tuple(names) != COLUMNS:
            yield (
                f"POINT_FEATURE_ENCODING.src_feature_list must be [{', '.join(COLUMNS)}]; got {list(names)}"
            )
