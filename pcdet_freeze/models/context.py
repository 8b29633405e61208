"""What a module may know while it is built: the data set's geometry, and what the modules before it write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.ops.maps.map_layout import Choice


@dataclass(frozen=True)
class Features:
    """Shape of one ``batch_dict`` entry: channels; rows (y) and columns (x) of a BEV map; and layers (z)."""

    channels: int
    height: int = 0
    width: int = 0
    depth: int = 0


@dataclass
class BuildContext:
    """Geometry and channels, handed to each module in turn; a module adds what it writes to ``features``."""

    class_names: tuple[str, ...]
    num_point_features: int
    """columns of a point: x, y, z (metres, LiDAR frame) and the rest"""
    point_cloud_range: tuple[float, ...]
    """x, y, z minimum, then maximum, in metres"""
    grid_size: tuple[int, ...]
    """cells along x, y, z; empty where the data processor makes no voxels"""
    voxel_size: tuple[float, ...]
    """metres along x, y, z; empty where the data processor makes no voxels"""
    depth_downsample_factor: int | None = None
    semantic_class_names: tuple[str, ...] = ()
    """names of the points' classes; empty where the data set has none"""
    lane_map_shape: tuple[int, ...] = ()
    """rows (y) and columns (x) of lane maps; empty where the data set has none"""
    channels_last: Choice = "auto"
    """MODEL.CHANNELS_LAST"""
    features: dict[str, Features] = field(default_factory=dict)
    section: str = "DENSE_HEAD"
    """key in MODEL of the dense head that is built, for messages"""
    labels: tuple[int, ...] = ()
    """label in gt_boxes and predictions, from 1, of each of ``class_names``"""
    suffix: str = ""
    """what a dense head appends to the keys that it writes, so that several do not overwrite each other's"""

    def __post_init__(self) -> None:
        self.labels = self.labels or tuple(range(1, len(self.class_names) + 1))

    @classmethod
    def from_dataset(cls, dataset: Any, num_class: int) -> BuildContext:
        """Read the attributes that OpenPCDet's ``build_network`` reads, and what labels there are."""
        names = tuple(dataset.class_names)
        if num_class != len(names):
            raise ConfigError(
                f"num_class must be the number of the data set's classes, {len(names)} ({', '.join(names)}); "
                f"got {num_class}: pass len(dataset.class_names)"
            )
        return cls(
            class_names=names,
            num_point_features=int(dataset.point_feature_encoder.num_point_features),
            point_cloud_range=tuple(float(v) for v in dataset.point_cloud_range),
            grid_size=_plain(getattr(dataset, "grid_size", None), int),
            voxel_size=_plain(getattr(dataset, "voxel_size", None), float),
            depth_downsample_factor=getattr(dataset, "depth_downsample_factor", None),
            semantic_class_names=_plain(getattr(dataset, "semantic_class_names", None), str),
            lane_map_shape=_plain(getattr(dataset, "lane_map_shape", None), int),
        )

    @property
    def num_class(self) -> int:
        return len(self.class_names)

    def of_head(self, section: str, suffix: str, class_names: Sequence[str]) -> BuildContext:
        """The context of one of several dense heads, for ``class_names`` of the data set's classes."""
        labels = tuple(self.class_names.index(name) + 1 for name in class_names)
        return replace(self, class_names=tuple(class_names), labels=labels, section=section, suffix=suffix)

    def need_voxels(self, who: str) -> None:
        """Raise ConfigError where the data set makes no voxels."""
        if len(self.grid_size) != 3 or len(self.voxel_size) != 3:
            raise ConfigError(
                f"{who} reads voxels, but the data set has no voxel size: add transform_points_to_voxels to "
                "DATA_CONFIG.DATA_PROCESSOR"
            )

    def features_of(self, key: str, who: str) -> Features:
        """Shape of ``batch_dict[key]`` as an earlier module writes it; ConfigError where none does."""
        if key not in self.features:
            raise ConfigError(
                f"{who} reads {key}, which no module before it writes (written so far: "
                f"{', '.join(self.features) or 'nothing'}): add the section of the module that does"
            )
        return self.features[key]


def _plain(values: Any, kind: type) -> tuple[Any, ...]:
    return () if values is None else tuple(kind(v) for v in values)
