"""Backbones on the bird's-eye-view map."""

from pcdet_freeze.models.backbones_2d.base_bev_backbone import BaseBEVBackbone
from pcdet_freeze.models.backbones_2d.base_bev_backbone_multi_task import BaseBEVBackboneMultiTask
from pcdet_freeze.models.backbones_2d.base_bev_res_backbone import BaseBEVResBackbone, BasicBlock
from pcdet_freeze.models.backbones_2d.encoder_decoder import EncoderDecoder
from pcdet_freeze.models.backbones_2d.mixsegnet import MixSegNet

__all__ = [
    "BaseBEVBackbone",
    "BaseBEVBackboneMultiTask",
    "BaseBEVResBackbone",
    "BasicBlock",
    "EncoderDecoder",
    "MixSegNet",
]
