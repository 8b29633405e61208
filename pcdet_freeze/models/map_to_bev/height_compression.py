"""HeightCompression: height layers of a sparse volume as channels (SECOND, Sensors 2018, 3.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.registry import MAP_TO_BEVS
from pcdet_freeze.ops import sparse
from pcdet_freeze.ops.maps.map_layout import MapWriter
from pcdet_freeze.utils.settings.rules import Count


@dataclass(frozen=True)
class HeightCompressionSettings:
    """``MODEL.MAP_TO_BEV`` of HeightCompression."""

    num_bev_features: Count
    """channels of the map: channels of the volume times its number of height layers"""


@MAP_TO_BEVS.register
class HeightCompression(MapWriter, nn.Module):
    """Converts the sparse volume to a dense one and concatenates its height layers as channels."""

    Settings = HeightCompressionSettings
    reads = ("encoded_spconv_tensor", "encoded_spconv_tensor_stride")
    writes = ("spatial_features", "spatial_features_stride")
    reads_train: tuple[str, ...] = ()

    def __init__(self, settings: HeightCompressionSettings, context: BuildContext) -> None:
        super().__init__()
        given = context.features_of("encoded_spconv_tensor", "MODEL.MAP_TO_BEV (HeightCompression)")
        self.num_bev_features = given.channels * given.depth
        if settings.num_bev_features != self.num_bev_features:
            raise ConfigError(
                f"MODEL.MAP_TO_BEV.NUM_BEV_FEATURES must be {self.num_bev_features}, "
                f"{given.channels} channels of the 3D backbone in {given.depth} layers of height; "
                f"got {settings.num_bev_features}"
            )
        self.channels_last = context.channels_last
        context.features["spatial_features"] = Features(self.num_bev_features, given.height, given.width)

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Convert a sparse volume to a BEV map.

        Reads:
            encoded_spconv_tensor: sparse tensor with C channels and Z x H x W cells
            encoded_spconv_tensor_stride: voxels per cell
        Writes:
            spatial_features: (B, C * Z, H, W), H along y, W along x; channels-last where
                MODEL.CHANNELS_LAST says so
            spatial_features_stride: the same stride
        """
        volume = batch_dict["encoded_spconv_tensor"]
        last = self.writes_channels_last(volume.features.device)
        maps = sparse.bev_map(volume) if last else sparse.dense(volume).flatten(1, 2)
        batch_dict["spatial_features"] = maps
        batch_dict["spatial_features_stride"] = batch_dict["encoded_spconv_tensor_stride"]
        return batch_dict
