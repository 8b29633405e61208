"""DATA_CONFIG of WaymoDataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.utils.settings.rules import Count, Name, whole

POINT_COLUMNS = 5
"""x, y, z, intensity, elongation"""


Columns = tuple[Annotated[int, whole(0, POINT_COLUMNS - 1)], ...]
"""numbers of columns, 3: intensity"""


@dataclass(frozen=True, kw_only=True)
class WaymoSettings(DataSettings):
    """DATA_CONFIG of WaymoDataset, with OpenPCDet's keys; DATA_PATH holds ImageSets/ and the folder below."""

    not_built: ClassVar[tuple[str, ...]] = (
        "SEQUENCE_CONFIG", "USE_PREDBOX", "ROI_BOXES_PATH", "INFO_WITH_FAKELIDAR", "USE_SHARED_MEMORY",
    )  # fmt: skip

    processed_data_tag: Name
    """folder of DATA_PATH with the segments"""
    data_split: Modes[Name]
    sampled_interval: Modes[Count]
    """every how many frames one is used, counted over all segments"""
    filter_empty_boxes_for_train: bool = False
    """training leaves out boxes without a point"""
    disable_nlz_flag_on_points: bool = False
    """use points in no-label zones too"""
    points_tanh_dim: Columns | None = None
    """columns of which the tanh is taken; null: the intensity"""
    train_with_speed: bool = False
    """boxes have vx, vy"""
    shared_memory_file_limit: Any = None
    """is for USE_SHARED_MEMORY, and is not read"""

    def faults(self) -> Iterator[str]:
        """Columns that the files do not have."""
        known = len(self.point_feature_encoding.src_feature_list)
        if known != POINT_COLUMNS:
            yield (
                "POINT_FEATURE_ENCODING.src_feature_list must name the five columns of a frame "
                f"[x, y, z, intensity, elongation]; got {known}"
            )
