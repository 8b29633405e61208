"""Settings of the anchor heads: ``MODEL.DENSE_HEAD``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.dense_heads.anchor_generator import AnchorClass
from pcdet_freeze.models.dense_heads.box_coder import BOX_CODERS
from pcdet_freeze.models.dense_heads.losses import smooth_l1

REG_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "WeightedSmoothL1Loss": smooth_l1,
    "WeightedL1Loss": torch.abs,
}


@dataclass(frozen=True)
class BoxCoderSettings:
    """``TARGET_ASSIGNER_CONFIG.BOX_CODER_CONFIG``."""

    lower_keys: ClassVar[bool] = True
    code_size: int = 7
    """columns of a box: x, y, z, dx, dy, dz, heading, and velocity where there is one"""
    encode_angle_by_sincos: bool = False
    """the heading takes two columns of the code"""

    def columns(self) -> int:
        """Columns of a box code."""
        return self.code_size + int(self.encode_angle_by_sincos)


@dataclass(frozen=True)
class TargetAssignerSettings:
    """``TARGET_ASSIGNER_CONFIG``."""

    name: str = "AxisAlignedTargetAssigner"
    box_coder: str = "ResidualCoder"
    box_coder_config: BoxCoderSettings = field(default_factory=BoxCoderSettings)
    pos_fraction: float = -1.0
    """below 0: every anchor counts; a random selection is not built"""
    sample_size: int = 512
    """size of that selection; without one it has no use"""
    norm_by_num_examples: bool = False
    match_height: bool = False

    def __post_init__(self) -> None:
        if self.name != "AxisAlignedTargetAssigner":
            raise ConfigError(
                f"NAME must be AxisAlignedTargetAssigner, others are not built; got {self.name!r}"
            )
        if self.box_coder not in BOX_CODERS:
            raise ConfigError(
                f"BOX_CODER must be one of {', '.join(BOX_CODERS)}, others are not built; "
                f"got {self.box_coder!r}"
            )
        if self.pos_fraction >= 0:
            raise ConfigError(
                f"POS_FRACTION must be -1.0: choosing anchors at random is not built; got {self.pos_fraction}"
            )


@dataclass(frozen=True)
class LossWeights:
    """``LOSS_CONFIG.LOSS_WEIGHTS``."""

    lower_keys: ClassVar[bool] = True
    cls_weight: float
    loc_weight: float
    code_weights: tuple[float, ...]
    """one a column of the box code"""
    dir_weight: float | None = None
    pos_cls_weight: float = 1.0
    """factor of positive anchors in the class loss"""
    neg_cls_weight: float = 1.0
    """factor of negative anchors in the class loss"""


@dataclass(frozen=True)
class LossSettings:
    """``LOSS_CONFIG``."""

    loss_weights: LossWeights
    reg_loss_type: str = "WeightedSmoothL1Loss"

    def __post_init__(self) -> None:
        if self.reg_loss_type not in REG_LOSSES:
            raise ConfigError(
                f"REG_LOSS_TYPE must be one of {', '.join(REG_LOSSES)}; got {self.reg_loss_type!r}"
            )


@dataclass(frozen=True)
class AnchorHeadSettings:
    """Keys of ``MODEL.DENSE_HEAD`` that all anchor heads have."""

    anchor_generator_config: tuple[AnchorClass, ...]
    target_assigner_config: TargetAssignerSettings
    loss_config: LossSettings
    class_agnostic: bool = False
    use_direction_classifier: bool = False
    dir_offset: float = 0.0
    """radians; where the first direction sector starts"""
    dir_limit_offset: float = 0.0
    num_dir_bins: int = 2
    use_multihead: bool = False
    predict_boxes_when_training: bool = False

    def __post_init__(self) -> None:
        coder, weights = self.target_assigner_config.box_coder_config, self.loss_config.loss_weights
        if self.class_agnostic:
            raise ConfigError("CLASS_AGNOSTIC: True is not built; set it to False")
        if self.use_direction_classifier and weights.dir_weight is None:
            raise ConfigError("LOSS_CONFIG.LOSS_WEIGHTS.dir_weight is required with USE_DIRECTION_CLASSIFIER")
        if self.use_direction_classifier and coder.encode_angle_by_sincos:
            raise ConfigError(
                "USE_DIRECTION_CLASSIFIER and encode_angle_by_sincos both settle which way a box points: "
                "keep one"
            )
        if self.num_dir_bins < 1:
            raise ConfigError(f"NUM_DIR_BINS must be positive; got {self.num_dir_bins}")
        if len(weights.code_weights) != coder.columns():
            raise ConfigError(
                f"LOSS_CONFIG.LOSS_WEIGHTS.code_weights must have {coder.columns()} entries, one a column "
                f"of the box code; got {len(weights.code_weights)}"
            )


@dataclass(frozen=True)
class AnchorHeadSingleSettings(AnchorHeadSettings):
    """``MODEL.DENSE_HEAD`` of AnchorHeadSingle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_multihead:
            raise ConfigError("USE_MULTIHEAD: True belongs to AnchorHeadMulti; set it to False")


@dataclass(frozen=True)
class GroupSettings:
    """An entry of ``RPN_HEAD_CFGS``."""

    head_cls_name: tuple[str, ...]
    """classes of the head"""


@dataclass(frozen=True)
class SeparateRegSettings:
    """``SEPARATE_REG_CONFIG``: convolutions of its own for each group of a box code's columns."""

    reg_list: tuple[str, ...]
    """NAME:COLUMNS each, in the order of the code"""
    num_middle_conv: int
    """3x3 convolutions before the last"""
    num_middle_filter: int

    def __post_init__(self) -> None:
        for entry in self.reg_list:
            if not re.fullmatch(r"\w+:[1-9]\d*", entry):
                raise ConfigError(f"an entry of REG_LIST is NAME:COLUMNS, such as size:3; got {entry!r}")
        if self.num_middle_conv < 0 or self.num_middle_filter < 1:
            raise ConfigError(
                "NUM_MIDDLE_CONV must be 0 or more, NUM_MIDDLE_FILTER positive; got "
                f"{self.num_middle_conv} and {self.num_middle_filter}"
            )

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
    shared_conv_num_filter: int | None = None
    """channels of a 3x3 convolution before the heads; null: none"""
    separate_reg_config: SeparateRegSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_multihead:
            raise ConfigError(
                "USE_MULTIHEAD must be True for AnchorHeadMulti; for one head, AnchorHeadSingle"
            )
        code = self.target_assigner_config.box_coder_config.columns()
        if self.separate_reg_config is not None:
            found = sum(self.separate_reg_config.columns().values())
            if found != code:
                raise ConfigError(
                    f"SEPARATE_REG_CONFIG.REG_LIST must add up to the {code} columns of the box code; "
                    f"got {found}"
                )
