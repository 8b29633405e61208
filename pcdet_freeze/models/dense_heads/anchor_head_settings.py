"""Settings of the anchor heads: ``MODEL.DENSE_HEAD``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from pcdet_freeze.models.dense_heads.anchor_generator import AnchorClass
from pcdet_freeze.models.dense_heads.box_coder import BOX_CODERS
from pcdet_freeze.models.dense_heads.losses import smooth_l1
from pcdet_freeze.utils.settings.rules import Angle, Count, Rule, Weight, one_of, only, whole
from pcdet_freeze.utils.settings.sections import Section

REG_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "WeightedSmoothL1Loss": smooth_l1,
    "WeightedL1Loss": torch.abs,
}


@dataclass(frozen=True)
class BoxCoderSettings(Section):
    """``TARGET_ASSIGNER_CONFIG.BOX_CODER_CONFIG``."""

    lower_keys: ClassVar[bool] = True
    code_size: Count = 7
    """columns of a box: x, y, z, dx, dy, dz, heading, and velocity where there is one"""
    encode_angle_by_sincos: bool = False
    """the heading takes two columns of the code"""

    def columns(self) -> int:
        """Columns of a box code."""
        return self.code_size + int(self.encode_angle_by_sincos)


@dataclass(frozen=True)
class TargetAssignerSettings(Section):
    """``TARGET_ASSIGNER_CONFIG``."""

    name: Literal["AxisAlignedTargetAssigner"] = "AxisAlignedTargetAssigner"
    box_coder: Annotated[str, one_of(BOX_CODERS)] = "ResidualCoder"
    box_coder_config: BoxCoderSettings = field(default_factory=BoxCoderSettings)
    pos_fraction: Annotated[
        float, Rule("-1.0, since a random selection of anchors is not implemented", lambda value: value < 0)
    ] = -1.0
    """below 0: every anchor counts"""
    sample_size: Count = 512
    """size of a random selection; has no effect"""
    norm_by_num_examples: bool = False
    match_height: bool = False


@dataclass(frozen=True)
class LossWeights(Section):
    """``LOSS_CONFIG.LOSS_WEIGHTS``."""

    lower_keys: ClassVar[bool] = True
    cls_weight: Weight
    loc_weight: Weight
    code_weights: tuple[Weight, ...]
    """one a column of the box code"""
    dir_weight: Weight | None = None
    pos_cls_weight: Weight = 1.0
    """factor of positive anchors in the class loss"""
    neg_cls_weight: Weight = 1.0
    """factor of negative anchors in the class loss"""


@dataclass(frozen=True)
class LossSettings(Section):
    """``LOSS_CONFIG``."""

    loss_weights: LossWeights
    reg_loss_type: Annotated[str, one_of(REG_LOSSES)] = "WeightedSmoothL1Loss"


@dataclass(frozen=True)
class AnchorHeadSettings(Section):
    """Keys of ``MODEL.DENSE_HEAD`` that all anchor heads have."""

    anchor_generator_config: tuple[AnchorClass, ...]
    target_assigner_config: TargetAssignerSettings
    loss_config: LossSettings
    class_agnostic: Annotated[bool, only(False, "class-agnostic heads are not implemented")] = False
    use_direction_classifier: bool = False
    dir_offset: Angle = 0.0
    """radians; where the first direction sector starts"""
    dir_limit_offset: Angle = 0.0
    num_dir_bins: Count = 2
    use_multihead: bool = False
    predict_boxes_when_training: bool = False

    def faults(self) -> Iterator[str]:
        """Keys that do not fit each other."""
        coder, weights = self.target_assigner_config.box_coder_config, self.loss_config.loss_weights
        if self.use_direction_classifier and weights.dir_weight is None:
            yield "LOSS_CONFIG.LOSS_WEIGHTS.dir_weight is required with USE_DIRECTION_CLASSIFIER"
        if self.use_direction_classifier and coder.encode_angle_by_sincos:
            yield (
                "USE_DIRECTION_CLASSIFIER and encode_angle_by_sincos both encode the direction of a box: "
                "keep one"
            )
        if len(weights.code_weights) != coder.columns():
            yield (
                f"LOSS_CONFIG.LOSS_WEIGHTS.code_weights must have {coder.columns()} entries, one a column "
                f"of the box code; got {len(weights.code_weights)}"
            )


@dataclass(frozen=True)
class AnchorHeadSingleSettings(AnchorHeadSettings):
    """``MODEL.DENSE_HEAD`` of AnchorHeadSingle."""

    use_multihead: Annotated[bool, only(False, "several heads are AnchorHeadMulti")] = False


def _is_branch(entry: str) -> bool:
    return re.fullmatch(r"\w+:[1-9]\d*", entry) is not None


@dataclass(frozen=True)
class GroupSettings(Section):
    """An entry of ``RPN_HEAD_CFGS``."""

    head_cls_name: tuple[str, ...]
    """classes of the head"""


@dataclass(frozen=True)
class SeparateRegSettings(Section):
    """``SEPARATE_REG_CONFIG``: convolutions of its own for each group of a box code's columns."""

    reg_list: tuple[Annotated[str, Rule("NAME:COLUMNS, such as size:3", _is_branch)], ...]
    """in the order of the code"""
    num_middle_conv: Annotated[int, whole(0)]
    """3x3 convolutions before the last"""
    num_middle_filter: Count

    def columns(self) -> dict[str, int]:
        """Name -> columns of the code."""
        pairs = (entry.split(":") for entry in self.reg_list)
        return {name: int(columns) for name, columns in pairs}


@dataclass(frozen=True, kw_only=True)
class AnchorHeadMultiSettings(AnchorHeadSettings):
    """``MODEL.DENSE_HEAD`` of AnchorHeadMulti."""

    rpn_head_cfgs: tuple[GroupSettings, ...]
    separate_multihead: bool = False
    """a head has columns for its own classes only, not for all"""
    shared_conv_num_filter: Count | None = None
    """channels of a 3x3 convolution before the heads; null: none"""
    separate_reg_config: SeparateRegSettings | None = None

    def faults(self) -> Iterator[str]:
        """Keys that do not fit each other."""
        yield from super().faults()
        if not self.use_multihead:
            yield "USE_MULTIHEAD must be true for AnchorHeadMulti; for one head, AnchorHeadSingle"
        code = self.target_assigner_config.box_coder_config.columns()
        if self.separate_reg_config is not None:
            found = sum(self.separate_reg_config.columns().values())
            if found != code:
                yield (
                    f"SEPARATE_REG_CONFIG.REG_LIST must add up to the {code} columns of the box code; "
                    f"got {found}"
                )
