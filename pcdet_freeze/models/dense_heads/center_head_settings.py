"""Settings of CenterHead: ``MODEL.DENSE_HEAD``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.post_processing import NMSSettings

# what a branch of a head predicts: name -> columns, in the order of the box code
BOX_CODE = {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "vel": 2}


@dataclass(frozen=True)
class BranchSettings:
    """One entry of ``SEPARATE_HEAD_CFG.HEAD_DICT``."""

    lower_keys: ClassVar[bool] = True
    out_channels: int
    num_conv: int
    """3x3 convolutions; all but the last with norm and ReLU"""

    def __post_init__(self) -> None:
        if self.num_conv < 1:
            raise ConfigError(f"num_conv must be positive; got {self.num_conv}")


@dataclass(frozen=True)
class SeparateHeadSettings:
    """``SEPARATE_HEAD_CFG``: the branches beside the heatmap."""

    head_order: tuple[str, ...]
    head_dict: dict[str, BranchSettings]

    def __post_init__(self) -> None:
        code = list(BOX_CODE)
        if list(self.head_order) not in (code, code[:-1]):
            raise ConfigError(
                f"HEAD_ORDER must be {', '.join(code[:-1])}, with or without {code[-1]} behind; got "
                f"{', '.join(self.head_order)}: other branches are not built"
            )
        if sorted(self.head_dict) != sorted(self.head_order):
            raise ConfigError(
                f"HEAD_DICT must describe the branches of HEAD_ORDER, {', '.join(self.head_order)}; got "
                f"{', '.join(self.head_dict)}"
            )
        for name, branch in self.head_dict.items():
            if branch.out_channels != BOX_CODE[name]:
                raise ConfigError(
                    f"HEAD_DICT.{name}.out_channels must be {BOX_CODE[name]}; got {branch.out_channels}"
                )


@dataclass(frozen=True)
class CenterTargetSettings:
    """``TARGET_ASSIGNER_CONFIG``."""

    feature_map_stride: int
    """cells of the voxel grid to one cell of the feature map"""
    num_max_objs: int
    """boxes of a sample that a head takes; further ones are left out"""
    gaussian_overlap: float
    """IoU that a box moved by the radius still has"""
    min_radius: int
    """cells"""
    dense_reg: int | None = None
    """has no effect, as in OpenPCDet"""

    def __post_init__(self) -> None:
        if min(self.feature_map_stride, self.num_max_objs) < 1:
            raise ConfigError(
                "FEATURE_MAP_STRIDE and NUM_MAX_OBJS must be positive; got "
                f"{self.feature_map_stride} and {self.num_max_objs}"
            )
        if not 0 < self.gaussian_overlap < 1:
            raise ConfigError(f"GAUSSIAN_OVERLAP must lie between 0 and 1; got {self.gaussian_overlap}")


@dataclass(frozen=True)
class CenterLossWeights:
    """``LOSS_CONFIG.LOSS_WEIGHTS``."""

    lower_keys: ClassVar[bool] = True
    cls_weight: float
    loc_weight: float
    code_weights: tuple[float, ...]
    """one a column of the box code: x, y, z, log sizes (3), cos, sin, velocity (2)"""


@dataclass(frozen=True)
class CenterLossSettings:
    """``LOSS_CONFIG``."""

    loss_weights: CenterLossWeights


@dataclass(frozen=True)
class CenterPostProcessing:
    """``DENSE_HEAD.POST_PROCESSING``: from maps to detections, each head by itself."""

    score_thresh: float
    """scores must lie above it"""
    post_center_limit_range: tuple[float, ...]
    """x, y, z minimum, then maximum, in metres; centres outside are dropped"""
    max_obj_per_sample: int
    """best cells that a head decodes"""
    nms_config: NMSSettings

    def __post_init__(self) -> None:
        if len(self.post_center_limit_range) != 6:
            raise ConfigError(
                f"POST_CENTER_LIMIT_RANGE needs six numbers; got {list(self.post_center_limit_range)}"
            )
        if self.max_obj_per_sample < 1:
            raise ConfigError(f"MAX_OBJ_PER_SAMPLE must be positive; got {self.max_obj_per_sample}")
        if self.nms_config.multi_classes_nms:
            raise ConfigError(
                "NMS_CONFIG.MULTI_CLASSES_NMS: True is not built for CenterHead, which suppresses head by "
                "head; set it to False"
            )


@dataclass(frozen=True)
class CenterHeadSettings:
    """``MODEL.DENSE_HEAD`` of CenterHead."""

    class_names_each_head: tuple[tuple[str, ...], ...]
    """a class belongs to one head; names that the data set does not have are passed over"""
    shared_conv_channel: int
    separate_head_cfg: SeparateHeadSettings
    target_assigner_config: CenterTargetSettings
    loss_config: CenterLossSettings
    post_processing: CenterPostProcessing
    use_bias_before_norm: bool = False
    num_hm_conv: int = 2
    """3x3 convolutions of a heatmap branch"""
    class_agnostic: bool = False
    bn_eps: float = 1e-5
    bn_mom: float = 0.1

    def __post_init__(self) -> None:
        if self.class_agnostic:
            raise ConfigError("CLASS_AGNOSTIC: True is not built; set it to False")
        if min(self.num_hm_conv, self.shared_conv_channel) < 1:
            raise ConfigError(
                "NUM_HM_CONV and SHARED_CONV_CHANNEL must be positive; got "
                f"{self.num_hm_conv} and {self.shared_conv_channel}"
            )
        columns = sum(BOX_CODE[name] for name in self.separate_head_cfg.head_order)
        weights = self.loss_config.loss_weights.code_weights
        if len(weights) != columns:
            raise ConfigError(
                f"LOSS_CONFIG.LOSS_WEIGHTS.code_weights must have {columns} entries, one a column of the "
                f"box code; got {len(weights)}"
            )
