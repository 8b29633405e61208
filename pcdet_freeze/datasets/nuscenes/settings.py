"""DATA_CONFIG of NuScenesDataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pcdet_freeze.datasets.labels.label_settings import SemanticSettings, cell_size_faults
from pcdet_freeze.datasets.point_features import EncodingSettings
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.utils.settings.rules import Length, Name, Rule, not_empty, whole
from pcdet_freeze.utils.settings.sections import Section

COLUMNS = ("x", "y", "z", "intensity", "timestamp")
"""of the points; timestamp: seconds since the point was measured, 0 in the newest sweep"""

Version = Annotated[
    str,
    Rule("a version of the tables, such as v1.0-trainval or v1.0-mini", lambda name: name.startswith("v")),
]
Layers = Annotated[
    tuple[Literal["lane_divider", "road_divider"], ...],
    not_empty("a list of lane_divider and road_divider", "[lane_divider, road_divider]"),
]


@dataclass(frozen=True)
class DividerSettings(Section):
    """``LANE``: how the dividers of the map expansion become lines and lane maps."""

    cell_size: Length
    """metres"""
    width: Length = 0.3
    """metres that a line is wide in the lane map"""
    layers: Layers = ("lane_divider", "road_divider")
    """layers of the map expansion"""
    max_lines: Annotated[int, whole(1, 255)] = 8
    """the longest lines of a frame that has more; the lane head has as many NUM_LANES"""


def _is_nuscenes_columns(names: Sequence[str]) -> bool:
    return tuple(names) == COLUMNS


@dataclass(frozen=True, kw_only=True)
class NuScenesSettings(DataSettings):
    """DATA_CONFIG of NuScenesDataset; DATA_PATH, or DATA_PATH/VERSION, holds samples/ and VERSION/."""

    point_feature_encoding: EncodingSettings
    version: Version
    data_split: Modes[Name]
    """train and val (of v1.0-mini: mini_train and mini_val), or names of <VERSION>/splits.json"""
    info_path: Modes[tuple[Name, ...]]
    max_sweeps: Annotated[int, whole(1)] = 10
    """sweeps of a frame: the annotated one, and those before it"""
    pred_velocity: bool = True
    """boxes have nine columns: vx, vy are the last two"""
    set_nan_velocity_to_zeros: bool = True
    """velocities of objects that were annotated once"""
    filter_min_points_in_gt: Annotated[int, whole(0)] = 0
    """boxes with fewer LiDAR points are left out"""
    balanced_resampling: bool = False
    """frames are drawn so that each class occurs in as many of them (CBGS); training only"""
    x_forward: bool = False
    """x forward, y left, as other data sets; false: the frame of the sensor, x right, y forward"""
    semantic: SemanticSettings | None = None
    """point classes; LABEL_MAP lists the numbers of lidarseg. null: no point labels"""
    lane: DividerSettings | None = None
    """null: no lane maps"""
    official_evaluation: bool = True
    """score boxes with the nuscenes-devkit; false: with MODEL.POST_PROCESSING.EVAL_METRIC"""

    def faults(self) -> Iterator[str]:
        """Point labels without their numbers, lanes in a frame without left and right, other columns."""
        if not _is_nuscenes_columns(self.point_feature_encoding.src_feature_list):
            yield (
                f"POINT_FEATURE_ENCODING.src_feature_list must be [{', '.join(COLUMNS)}]; got "
                f"{list(self.point_feature_encoding.src_feature_list)}"
            )
        if self.semantic is not None and self.semantic.label_map is None:
            yield "SEMANTIC.LABEL_MAP is required: it lists the numbers of lidarseg's classes, 0 to 31"
        if self.lane is not None:
            yield from cell_size_faults(self.lane.cell_size, self.point_cloud_range)
            if not self.x_forward:
                yield "LANE needs X_FORWARD: true, since lines are numbered from left (large y) to right"
