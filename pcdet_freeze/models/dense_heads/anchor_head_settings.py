"""Settings of the anchor heads: ``MODEL.DENSE_HEAD``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.dense_heads.anchor_generator import AnchorClass
from pcdet_freeze.models.dense_heads.losses import smooth_l1

REG_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "WeightedSmoothL1Loss": smooth_l1,
    "WeightedL1Loss": torch.abs,
}


@dataclass(frozen=True)
class TargetAssignerSettings:
    """``TARGET_ASSIGNER_CONFIG``."""

    name: str = "AxisAlignedTargetAssigner"
    box_coder: str = "ResidualCoder"
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
        if self.box_coder != "ResidualCoder":
            raise ConfigError(
                f"BOX_CODER must be ResidualCoder, others are not built; got {self.box_coder!r}"
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
class AnchorHeadSingleSettings:
    """``MODEL.DENSE_HEAD`` of AnchorHeadSingle."""

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
        if self.class_agnostic:
            raise ConfigError("CLASS_AGNOSTIC: True is not built; set it to False")
        if self.use_multihead:
            raise ConfigError(
                "USE_MULTIHEAD: True belongs to AnchorHeadMulti, which is not built; set it to False"
            )
        if self.use_direction_classifier and self.loss_config.loss_weights.dir_weight is None:
            raise ConfigError("LOSS_CONFIG.LOSS_WEIGHTS.dir_weight is required with USE_DIRECTION_CLASSIFIER")
        if self.num_dir_bins < 1:
            raise ConfigError(f"NUM_DIR_BINS must be positive; got {self.num_dir_bins}")
        if len(self.loss_config.loss_weights.code_weights) != 7:
            raise ConfigError(
                "LOSS_CONFIG.LOSS_WEIGHTS.code_weights must have 7 entries, one a column of the box"
            )
