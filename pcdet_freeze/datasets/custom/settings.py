"""DATA_CONFIG of CustomDataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pcdet_freeze.datasets.labels.label_settings import LaneFiles, SemanticSettings, cell_size_faults
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.utils.settings.rules import Length, Name, Rule, whole
from pcdet_freeze.utils.settings.sections import Section, settable


def _has_xyz(names: Sequence[str]) -> bool:
    return {"x", "y", "z"} <= set(names) and len(set(names)) == len(names)


FileColumns = Annotated[
    tuple[Name, ...],
    Rule("a list of different names with x, y and z", _has_xyz, advice="[x, y, z, intensity]"),
]


@dataclass(frozen=True)
class IntensitySettings(Section):
    """``INTENSITY``: the numbers that files store."""

    scale: Length
    """value in a file that the model gets as 1: 255 for one byte, 65535 for two"""


@settable("DATA_CONFIG")
@dataclass(frozen=True, kw_only=True)
class CustomSettings(DataSettings):
    """DATA_CONFIG of CustomDataset; DATA_PATH holds points/, labels/, ImageSets/, semantic/, lanes/."""

    data_split: Modes[Name]
    info_path: Modes[tuple[Name, ...]]
    file_columns: FileColumns | None = None
    """columns of .bin and .npy files, in their order; null: those of src_feature_list"""
    column_names: dict[str, Name] | None = None
    """column of src_feature_list -> its name in files whose columns have names"""
    intensity: IntensitySettings | None = None
    """null: the intensity is used as it is"""
    semantic: SemanticSettings | None = None
    """point classes; null: no point labels"""
    lane: LaneFiles | None = None
    """null: no lane maps"""
    min_points: Annotated[int, whole(0)] = 0
    """boxes with fewer points get no training box, and do not count in the evaluation"""
    map_class_to_kitti: dict[str, str] | None = None
    """OpenPCDet's; is not used, since the metric has classes of any name"""

    def faults(self) -> Iterator[str]:
        """Columns that files do not have, cells that do not fit the range."""
        wanted = self.point_feature_encoding.src_feature_list
        for name in self.column_names or {}:
            if name not in wanted:
                yield (
                    f"COLUMN_NAMES.{name} must be a column of POINT_FEATURE_ENCODING.src_feature_list "
                    f"({', '.join(wanted)}); got {name!r}"
                )
        missing = [name for name in wanted if self.file_columns and name not in self.file_columns]
        if missing:
            yield (
                f"FILE_COLUMNS must have the columns of POINT_FEATURE_ENCODING.src_feature_list; "
                f"{', '.join(missing)} is missing"
            )
        if self.intensity is not None and "intensity" not in wanted:
            yield (
                "INTENSITY is for the column intensity, which POINT_FEATURE_ENCODING.src_feature_list "
                f"({', '.join(wanted)}) does not have"
            )
        if self.lane is not None:
            yield from cell_size_faults(self.lane.cell_size, self.point_cloud_range)
