"""BaseBEVBackboneMultiTask: BaseBEVBackbone with one additional branch per task."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import nn

from pcdet_freeze.models.backbones_2d.base_bev_backbone import BaseBEVBackbone, BaseBEVBackboneSettings
from pcdet_freeze.models.backbones_2d.encoder_decoder import EncoderDecoder, conv_norm_relu
from pcdet_freeze.models.backbones_2d.mixsegnet import MixSegNet
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.map_layers import MapSequential
from pcdet_freeze.models.registry import BACKBONES_2D
from pcdet_freeze.utils.settings.rules import Count, Layers, Rule, one_of
from pcdet_freeze.utils.settings.sections import Section

SEGMENT, LANE = "segment", "lane"
PILLAR_MAP, SHARED_MAP = "spatial_features", "spatial_features_2d"
WHERE = "MODEL.BACKBONE_2D (BaseBEVBackboneMultiTask)"


@dataclass(frozen=True)
class SegBlocksSettings(Section):
    """``SEGBLOCKS``: the encoder-decoder of the segmentation branch, one entry per level."""

    layer_nums: tuple[Layers, ...] = (1, 1, 1)
    """3x3 convolutions of a level after its first"""
    num_filters: tuple[Count, ...] = (32, 64, 64)
    num_out: Count = 32
    """channels of seg_features_2d"""

    def faults(self) -> Iterator[str]:
        """Lists of different lengths."""
        if not self.num_filters or len(self.layer_nums) != len(self.num_filters):
            yield (
                "LAYER_NUMS and NUM_FILTERS must have one entry per level; got "
                f"{len(self.layer_nums)} and {len(self.num_filters)}"
            )


@dataclass(frozen=True)
class LaneBlocksSettings(Section):
    """``LANEBLOCKS``: convolutions in front of ``mixsegnet``, one entry per level."""

    layer_nums: tuple[Layers, ...] = (0, 1)
    """3x3 convolutions of a level after its first, strided one"""
    layer_strides: tuple[Count, ...] = (1, 2)
    num_filters: tuple[Count, ...] = (32, 64)

    def faults(self) -> Iterator[str]:
        """Lists of different lengths."""
        lengths = [len(self.layer_nums), len(self.layer_strides), len(self.num_filters)]
        if not lengths[0] or len(set(lengths)) > 1:
            yield f"LAYER_NUMS, LAYER_STRIDES and NUM_FILTERS must have one entry per level; got {lengths}"


@dataclass(frozen=True)
class MixSegNetSettings(Section):
    """``MIXSEGNET``; see :class:`MixSegNet`."""

    patch_size: Count = 8
    """cells of its input along a patch's side"""
    width: Count = 128
    depth: Count = 2
    num_out: Count = 64
    """channels of lane_features_2d"""


@dataclass(frozen=True)
class BaseBEVBackboneMultiTaskSettings(BaseBEVBackboneSettings):
    """``MODEL.BACKBONE_2D`` of BaseBEVBackboneMultiTask: the keys of BaseBEVBackbone and of its branches."""

    other_tasks: Annotated[
        tuple[Annotated[str, one_of((SEGMENT, LANE))], ...],
        Rule(f"a list of {SEGMENT} and {LANE}, each once", lambda tasks: len(set(tasks)) == len(tasks)),
    ] = ()
    """branches beside detection: segment, lane"""
    task_input: Annotated[str, one_of((PILLAR_MAP, SHARED_MAP))] = PILLAR_MAP
    """map that these branches read: that of map_to_bev, or that of blocks and deblocks"""
    segblocks: SegBlocksSettings = field(default_factory=SegBlocksSettings)
    laneblocks: LaneBlocksSettings = field(default_factory=LaneBlocksSettings)
    mixsegnet: MixSegNetSettings = field(default_factory=MixSegNetSettings)


@BACKBONES_2D.register
class BaseBEVBackboneMultiTask(BaseBEVBackbone):
    """Three parallel branches on ``spatial_features``; no branch reads the output of another.

    With ``TASK_INPUT: spatial_features_2d`` the branches of segmentation and lanes read the output of the
    detection branch, so that all tasks share ``blocks`` and ``deblocks``.

    ``blocks`` and ``deblocks`` have the ``state_dict`` keys of BaseBEVBackbone, so a detector trained with
    BaseBEVBackbone loads. ``segblocks`` and ``seg_out_conv`` exist with task "segment", ``laneblocks`` and
    ``mixsegnet`` with task "lane". All shapes follow from the size of the map.
    """

    Settings = BaseBEVBackboneMultiTaskSettings

    def __init__(self, settings: BaseBEVBackboneMultiTaskSettings, context: BuildContext) -> None:
        super().__init__(settings, context)
        self.task_input, trunk = settings.task_input, ("blocks", "deblocks")
        given = context.features_of(self.task_input, WHERE)
        self.made_by: dict[str, tuple[str, ...]] = {SHARED_MAP: trunk}
        before = trunk if self.task_input == SHARED_MAP else ()
        if SEGMENT in settings.other_tasks:
            context.features["seg_features_2d"] = self._add_segment(settings.segblocks, given)
            self.made_by["seg_features_2d"] = (*before, "segblocks", "seg_out_conv")
        if LANE in settings.other_tasks:
            context.features["lane_features_2d"] = self._add_lane(settings, given)
            self.made_by["lane_features_2d"] = (*before, "laneblocks", "mixsegnet")
        self.writes = tuple(self.made_by)

    def _add_segment(self, settings: SegBlocksSettings, given: Features) -> Features:
        widths = settings.num_filters
        self.segblocks = EncoderDecoder(given.channels, widths, settings.layer_nums, self.momentum)
        self.seg_out_conv = MapSequential(*conv_norm_relu(widths[0], settings.num_out, self.momentum))
        return Features(settings.num_out, given.height, given.width)

    def _add_lane(self, settings: BaseBEVBackboneMultiTaskSettings, given: Features) -> Features:
        blocks, mix = settings.laneblocks, settings.mixsegnet
        layers: list[nn.Module] = []
        channels, size = given.channels, (given.height, given.width)
        for width, stride, repeats in zip(
            blocks.num_filters, blocks.layer_strides, blocks.layer_nums, strict=True
        ):
            layers += conv_norm_relu(channels, width, self.momentum, stride)
            for _ in range(repeats):
                layers += conv_norm_relu(width, width, self.momentum)
            channels, size = width, (-(-size[0] // stride), -(-size[1] // stride))
        self.laneblocks = MapSequential(*layers)
        self.mixsegnet = MixSegNet(
            channels, size, mix.num_out, mix.patch_size, mix.width, mix.depth, self.momentum
        )
        return Features(mix.num_out, *size)

    def forward(self, batch_dict: dict[str, Any], skip: Collection[str] = ()) -> dict[str, Any]:
        """Encode the BEV map in all branches.

        Reads:
            spatial_features: (B, C, H, W), H along y, W along x
        Writes:
            spatial_features_2d: (B, sum of NUM_UPSAMPLE_FILTERS, H', W'), for detection
            seg_features_2d: (B, SEGBLOCKS.NUM_OUT, rows and columns of TASK_INPUT), with task "segment"
            lane_features_2d: (B, MIXSEGNET.NUM_OUT, H'', W''), with task "lane"

        ``skip`` names keys that are not needed; their branches do not run.
        """
        branches = [
            key for key in ("seg_features_2d", "lane_features_2d") if key in self.made_by and key not in skip
        ]
        if SHARED_MAP not in skip or (branches and self.task_input == SHARED_MAP):
            super().forward(batch_dict)
        x = batch_dict[self.task_input] if branches else None
        if "seg_features_2d" in branches:
            batch_dict["seg_features_2d"] = self.seg_out_conv(self.segblocks(x))
        if "lane_features_2d" in branches:
            batch_dict["lane_features_2d"] = self.mixsegnet(self.laneblocks(x))
        return batch_dict
