"""PointPillarScatter: pillar features -> BEV map (PointPillars, arXiv:1812.05784, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.registry import MAP_TO_BEVS
from pcdet_freeze.ops.maps.map_layout import MapWriter
from pcdet_freeze.ops.maps.scattered import keep_pillars, scatter
from pcdet_freeze.utils.settings.rules import Count


@dataclass(frozen=True)
class PointPillarScatterSettings:
    """``MODEL.MAP_TO_BEV`` of PointPillarScatter."""

    num_bev_features: Count
    """channels of the map: those of ``pillar_features``"""


@MAP_TO_BEVS.register
class PointPillarScatter(MapWriter, nn.Module):
    """Writes the features of each pillar into its cell of a zero map."""

    Settings = PointPillarScatterSettings
    reads = ("pillar_features", "voxel_coords", "batch_size")
    writes = ("spatial_features",)
    reads_train: tuple[str, ...] = ()

    def __init__(self, settings: PointPillarScatterSettings, context: BuildContext) -> None:
        super().__init__()
        who = "MODEL.MAP_TO_BEV (PointPillarScatter)"
        context.need_voxels(who)
        width, height, depth = context.grid_size
        channels = context.features_of("pillar_features", who).channels
        if depth != 1:
            raise ConfigError(
                f"{who} needs one pillar per cell, as high as POINT_CLOUD_RANGE; got {depth} voxels in z"
            )
        if settings.num_bev_features != channels:
            raise ConfigError(
                f"MODEL.MAP_TO_BEV.NUM_BEV_FEATURES must be the width of pillar_features, {channels}; "
                f"got {settings.num_bev_features}"
            )
        self.num_bev_features = channels
        self.width, self.height = width, height
        self.channels_last = context.channels_last
        context.features["spatial_features"] = Features(channels, height, width)

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Scatter pillars.

        Reads:
            pillar_features: (M, C)
            voxel_coords: (M, 4) [sample, z, y, x], in cells
            batch_size: number of samples, including empty ones
        Writes:
            spatial_features: (batch_size, C, H, W), H along y, W along x; channels-last where
                MODEL.CHANNELS_LAST says so
        """
        features, coords = batch_dict["pillar_features"], batch_dict["voxel_coords"].long()
        samples = int(batch_dict["batch_size"])
        cell = (coords[:, 0] * self.height + coords[:, 2]) * self.width + coords[:, 3]
        maps = scatter(features, cell, samples, self.height, self.width)
        channels_last = self.writes_channels_last(maps.device)
        batch_dict["spatial_features"] = (
            keep_pillars(maps, features, cell) if channels_last else maps.contiguous()
        )
        return batch_dict
