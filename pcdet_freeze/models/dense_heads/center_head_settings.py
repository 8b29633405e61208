"""Settings of CenterHead: ``MODEL.DENSE_HEAD``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pcdet_freeze.models.post_processing import NMSSettings
from pcdet_freeze.utils.settings.rules import Count, Place, Rule, Share, Weight, above, length, only, whole
from pcdet_freeze.utils.settings.sections import Section

# what a branch of a head predicts: name -> columns, in the order of the box code
BOX_CODE = {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "vel": 2}


@dataclass(frozen=True)
class BranchSettings(Section):
    """One entry of ``SEPARATE_HEAD_CFG.HEAD_DICT``."""

    lower_keys: ClassVar[bool] = True
    out_channels: Count
    num_conv: Count
    """3x3 convolutions; all but the last with norm and ReLU"""


@dataclass(frozen=True)
class SeparateHeadSettings(Section):
    """``SEPARATE_HEAD_CFG``: the branches beside the heatmap."""

    head_order: tuple[str, ...]
    head_dict: dict[str, BranchSettings]

    def faults(self) -> Iterator[str]:
        """Branches that are not implemented, or not described."""
        code = list(BOX_CODE)
        if list(self.head_order) not in (code, code[:-1]):
            yield (
                f"HEAD_ORDER must be {', '.join(code[:-1])}, with or without {code[-1]} behind; got "
                f"{', '.join(self.head_order)}: other branches are not implemented"
            )
        elif sorted(self.head_dict) != sorted(self.head_order):
            yield (
                f"HEAD_DICT must describe the branches of HEAD_ORDER, {', '.join(self.head_order)}; got "
                f"{', '.join(self.head_dict)}"
            )
        for name, branch in self.head_dict.items():
            if branch.out_channels != BOX_CODE.get(name, branch.out_channels):
                yield f"HEAD_DICT.{name}.out_channels must be {BOX_CODE[name]}; got {branch.out_channels}"


@dataclass(frozen=True)
class CenterTargetSettings(Section):
    """``TARGET_ASSIGNER_CONFIG``."""

    feature_map_stride: Count
    """cells of the voxel grid to one cell of the feature map"""
    num_max_objs: Count
    """boxes of a sample that a head takes; further ones are left out"""
    gaussian_overlap: Annotated[float, Rule("a number between 0 and 1", lambda value: 0 < value < 1)]
    """IoU that a box moved by the radius still has"""
    min_radius: Annotated[int, whole(0)]
    """cells"""
    dense_reg: Annotated[int, whole(0)] | None = None
    """has no effect, as in OpenPCDet"""


@dataclass(frozen=True)
class CenterLossWeights(Section):
    """``LOSS_CONFIG.LOSS_WEIGHTS``."""

    lower_keys: ClassVar[bool] = True
    cls_weight: Weight
    loc_weight: Weight
    code_weights: tuple[Weight, ...]
    """one a column of the box code: x, y, z, log sizes (3), cos, sin, velocity (2)"""


@dataclass(frozen=True)
class CenterLossSettings(Section):
    """``LOSS_CONFIG``."""

    loss_weights: CenterLossWeights


@dataclass(frozen=True)
class CenterPostProcessing(Section):
    """``DENSE_HEAD.POST_PROCESSING``: from maps to detections, each head by itself."""

    score_thresh: Share
    """scores must lie above it"""
    post_center_limit_range: Annotated[tuple[Place, ...], length(6, "six numbers")]
    """x, y, z minimum, then maximum, in metres; centres outside are dropped"""
    max_obj_per_sample: Count
    """best cells that a head decodes"""
    nms_config: NMSSettings

    def faults(self) -> Iterator[str]:
        """A kind of NMS that is not implemented."""
        if self.nms_config.multi_classes_nms:
            yield (
                "NMS_CONFIG.MULTI_CLASSES_NMS must be false for CenterHead, which suppresses head by head; "
                "got True"
            )


@dataclass(frozen=True)
class CenterHeadSettings(Section):
    """``MODEL.DENSE_HEAD`` of CenterHead."""

    class_names_each_head: tuple[tuple[str, ...], ...]
    """a class belongs to one head; names that the data set does not have are passed over"""
    shared_conv_channel: Count
    separate_head_cfg: SeparateHeadSettings
    target_assigner_config: CenterTargetSettings
    loss_config: CenterLossSettings
    post_processing: CenterPostProcessing
    use_bias_before_norm: bool = False
    num_hm_conv: Count = 2
    """3x3 convolutions of a heatmap branch"""
    class_agnostic: Annotated[bool, only(False, "class-agnostic heads are not implemented")] = False
    bn_eps: Annotated[float, above(0)] = 1e-5
    bn_mom: Share = 0.1

    def faults(self) -> Iterator[str]:
        """Weights that do not fit the box code."""
        columns = sum(BOX_CODE.get(name, 0) for name in self.separate_head_cfg.head_order)
        weights = self.loss_config.loss_weights.code_weights
        if len(weights) != columns:
            yield (
                f"LOSS_CONFIG.LOSS_WEIGHTS.code_weights must have {columns} entries, one a column of the "
                f"box code; got {len(weights)}"
            )
