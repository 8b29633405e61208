"""BaseBEVBackbone: strided blocks, upsampling by transposed convolutions, concatenation.

The region proposal network of VoxelNet (arXiv:1711.06396) in the form of PointPillars (arXiv:1812.05784,
2.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.map_layers import BatchNorm2d, Conv2d, ConvTranspose2d, MapSequential
from pcdet_freeze.models.registry import BACKBONES_2D
from pcdet_freeze.ops.maps.map_layout import JoinedMap
from pcdet_freeze.utils.settings.rules import Count, Layers, Share, above
from pcdet_freeze.utils.settings.sections import Section


@dataclass(frozen=True)
class BaseBEVBackboneSettings(Section):
    """``MODEL.BACKBONE_2D`` of BaseBEVBackbone: one entry per level."""

    layer_nums: tuple[Layers, ...]
    """3x3 convolutions of a block after its first, strided one"""
    layer_strides: tuple[Count, ...]
    num_filters: tuple[Count, ...]
    upsample_strides: tuple[Annotated[float, above(0)], ...] = ()
    """scale of each level's way back up (below 1: a strided convolution); one more: of the whole"""
    num_upsample_filters: tuple[Count, ...] = ()
    use_conv_for_no_stride: bool = False
    """an upsample stride of 1 is a 1x1 convolution instead of a transposed one"""
    bn_momentum: Share = 0.01

    def faults(self) -> Iterator[str]:
        """Lists of different lengths."""
        levels, ups = len(self.layer_nums), len(self.upsample_strides)
        if not levels or not levels == len(self.layer_strides) == len(self.num_filters):
            yield (
                "LAYER_NUMS, LAYER_STRIDES and NUM_FILTERS must have one entry per level; got "
                f"{levels}, {len(self.layer_strides)} and {len(self.num_filters)} entries"
            )
        if ups not in (0, levels, levels + 1) or len(self.num_upsample_filters) != min(ups, levels):
            yield (
                f"UPSAMPLE_STRIDES and NUM_UPSAMPLE_FILTERS must have {levels} entries each, or none "
                f"(UPSAMPLE_STRIDES may have one more); got {ups} and {len(self.num_upsample_filters)}"
            )


@BACKBONES_2D.register
class BaseBEVBackbone(nn.Module):
    """``blocks``: one per level; ``deblocks``: one per level, all with the same output size."""

    Settings = BaseBEVBackboneSettings
    reads = ("spatial_features",)
    writes: tuple[str, ...] = ("spatial_features_2d",)
    reads_train: tuple[str, ...] = ()

    def __init__(self, settings: BaseBEVBackboneSettings, context: BuildContext) -> None:
        super().__init__()
        given = context.features_of("spatial_features", "MODEL.BACKBONE_2D (BaseBEVBackbone)")
        self.momentum = settings.bn_momentum
        self.upsample_strides, self.widths_up = settings.upsample_strides, settings.num_upsample_filters
        self.blocks, self.deblocks = nn.ModuleList(), nn.ModuleList()
        sizes: list[tuple[int, int]] = []
        channels, size = given.channels, (given.height, given.width)
        for level, width in enumerate(settings.num_filters):
            stride = settings.layer_strides[level]
            self.blocks.append(self._block(channels, width, stride, settings.layer_nums[level]))
            channels, size = width, ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)
            if settings.upsample_strides:
                up, width_up = settings.upsample_strides[level], settings.num_upsample_filters[level]
                self.deblocks.append(self._deblock(width, width_up, up, settings.use_conv_for_no_stride))
                sizes.append(_resized(size, up))
        if len(set(sizes)) > 1:
            raise ConfigError(_sizes_differ(sizes, given))
        self.num_bev_features = sum(settings.num_upsample_filters) or channels
        size = sizes[0] if sizes else size
        if len(settings.upsample_strides) > len(self.blocks):
            up = settings.upsample_strides[-1]
            self.deblocks.append(self._deblock(self.num_bev_features, self.num_bev_features, up, False))
            size = _resized(size, up)
        context.features["spatial_features_2d"] = Features(self.num_bev_features, *size)

    def _block(self, channels: int, width: int, stride: int, repeats: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.ZeroPad2d(1), nn.Conv2d(channels, width, 3, stride=stride, bias=False)]
        layers += self._norm(width)
        for _ in range(repeats):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), *self._norm(width)]
        return MapSequential(*layers)

    def _deblock(self, channels: int, width: int, up: float, conv_for_one: bool) -> MapSequential:
        conv: nn.Module
        if up > 1 or (up == 1 and not conv_for_one):
            conv = ConvTranspose2d(channels, width, _integer(up), stride=_integer(up), bias=False)
        else:
            conv = Conv2d(channels, width, _integer(1 / up), stride=_integer(1 / up), bias=False)
        return MapSequential(conv, *self._norm(width))

    def _norm(self, width: int) -> list[nn.Module]:
        return [BatchNorm2d(width, eps=1e-3, momentum=self.momentum), nn.ReLU()]

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Encode the BEV map.

        Reads:
            spatial_features: (B, C, H, W), H along y, W along x
        Writes:
            spatial_features_2d: (B, sum of NUM_UPSAMPLE_FILTERS, H', W')
        """
        x, ups, joined = batch_dict["spatial_features"], [], None
        for level, block in enumerate(self.blocks):
            x = block(x)
            joined = self._joined_map(x) if level == 0 else joined
            if len(self.deblocks):
                up: Any = self.deblocks[level]
                ups.append(up(x) if joined is None else up.forward_into(x, joined.places[level]))
        if len(ups) > 1:
            x = torch.cat(ups, dim=1) if joined is None else joined.join(ups)
        elif ups:
            x = ups[0]
        if len(self.deblocks) > len(self.blocks):
            x = self.deblocks[-1](x)
        batch_dict["spatial_features_2d"] = x
        return batch_dict

    def _joined_map(self, x: Tensor) -> JoinedMap | None:
        """The map that the deblocks write side by side; None where they cannot. ``x`` is the first level."""
        ups = list(self.deblocks)[: len(self.blocks)]
        if len(ups) < 2 or not all(isinstance(up, MapSequential) and up.can_write(x) for up in ups):
            return None
        height, width = _resized((x.shape[2], x.shape[3]), self.upsample_strides[0])
        return JoinedMap(x, (len(x), height, width), self.widths_up)


def _integer(stride: float) -> int:
    if abs(stride - round(stride)) > 1e-6:
        raise ConfigError(
            "MODEL.BACKBONE_2D.UPSAMPLE_STRIDES must be integers or their reciprocals; "
            f"got {stride} or {1 / stride}"
        )
    return round(stride)


def _resized(size: tuple[int, int], up: float) -> tuple[int, int]:
    """Rows and columns after a deblock of stride ``up``."""
    if up >= 1:
        return size[0] * _integer(up), size[1] * _integer(up)
    return size[0] // _integer(1 / up), size[1] // _integer(1 / up)


def _sizes_differ(sizes: list[tuple[int, int]], given: Features) -> str:
    return (
        "MODEL.BACKBONE_2D: all levels must be upsampled to the same size, but a map of "
        f"{given.height} x {given.width} cells gives {', '.join(f'{h} x {w}' for h, w in sizes)}. Use "
        "UPSAMPLE_STRIDES that invert LAYER_STRIDES, and a POINT_CLOUD_RANGE whose grid is divisible by the "
        "strides."
    )
