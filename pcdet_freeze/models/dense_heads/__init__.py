"""Detection heads on the BEV map, with their anchors, targets, box coder and losses."""

from pcdet_freeze.models.dense_heads.anchor_generator import AnchorClass, AnchorGenerator
from pcdet_freeze.models.dense_heads.anchor_head_multi import AnchorHeadMulti
from pcdet_freeze.models.dense_heads.anchor_head_single import AnchorHeadSingle
from pcdet_freeze.models.dense_heads.box_coder import PreviousResidualDecoder, ResidualCoder
from pcdet_freeze.models.dense_heads.center_head import CenterHead, SeparateHead
from pcdet_freeze.models.dense_heads.center_targets import CenterTargetAssigner, CenterTargets
from pcdet_freeze.models.dense_heads.target_assigner import AxisAlignedTargetAssigner

__all__ = [
    "AnchorClass",
    "AnchorGenerator",
    "AnchorHeadMulti",
    "AnchorHeadSingle",
    "AxisAlignedTargetAssigner",
    "CenterHead",
    "CenterTargetAssigner",
    "CenterTargets",
    "PreviousResidualDecoder",
    "ResidualCoder",
    "SeparateHead",
]
