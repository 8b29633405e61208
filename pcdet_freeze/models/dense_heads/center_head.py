"""CenterHead: objects as peaks of heatmaps (Yin et al., CVPR 2021, arXiv:2006.11275)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.dense_heads.center_decoder import detect
from pcdet_freeze.models.dense_heads.center_head_settings import BranchSettings, CenterHeadSettings
from pcdet_freeze.models.dense_heads.center_targets import CenterTargetAssigner, CenterTargets, MapGeometry
from pcdet_freeze.models.dense_heads.losses import center_box_loss, heatmap_loss
from pcdet_freeze.models.loss_normalization import for_log, normalizers_of
from pcdet_freeze.models.map_layers import BatchNorm2d, MapSequential
from pcdet_freeze.models.partial_labels import boxes_to_learn, indices_of, rows_of
from pcdet_freeze.models.registry import DENSE_HEADS
from pcdet_freeze.utils.devices import constant

PRIOR = 0.1  # initial probability of a peak (CenterNet, arXiv:1904.07850, section 5)


class SeparateHead(nn.Module):
    """Branches of one group of classes, each with a few convolutions on the shared map."""

    def __init__(self, branches: dict[str, BranchSettings], settings: CenterHeadSettings) -> None:
        super().__init__()
        self.branches = tuple(branches)
        for name, branch in branches.items():
            width = settings.shared_conv_channel
            layers = [conv_norm_relu(width, width, settings) for _ in range(branch.num_conv - 1)]
            last = nn.Conv2d(width, branch.out_channels, 3, padding=1)
            self.add_module(name, nn.Sequential(*layers, last))

    def init_weights(self) -> None:
        """Kaiming initialisation; the heatmap starts with probability ``PRIOR``."""
        for name in self.branches:
            for module in self.get_submodule(name).modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.constant_(self.get_submodule("hm")[-1].bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[index]

    def forward(self, shared: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> raw output of each branch, (B, columns, H, W)."""
        return {name: self.get_submodule(name)(shared) for name in self.branches}


def conv_norm_relu(channels: int, width: int, settings: CenterHeadSettings) -> MapSequential:
    """3x3 convolution with stride 1, norm, ReLU."""
    return MapSequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=settings.use_bias_before_norm),
        BatchNorm2d(width, eps=settings.bn_eps, momentum=settings.bn_mom),
        nn.ReLU(),
    )


@DENSE_HEADS.register
class CenterHead(nn.Module):
    """A shared convolution, then a SeparateHead for each group of classes.

    ``forward_ret_dict`` stores the raw outputs of the last forward and, in train mode, the targets. Copies
    and pickles of the head do not contain it.
    """

    Settings = CenterHeadSettings
    reads = ("spatial_features_2d",)
    writes: tuple[str, ...] = ("final_box_dicts",)
    reads_train = ("gt_boxes",)

    def __init__(self, settings: CenterHeadSettings, context: BuildContext) -> None:
        super().__init__()
        self.where = f"MODEL.{context.section} (CenterHead)"
        context.need_voxels(self.where)
        given = context.features_of("spatial_features_2d", self.where)
        self.settings, self.class_names = settings, context.class_names
        self.num_class, self.labels = context.num_class, context.labels
        self.suffix = context.suffix
        self.writes = tuple(key + self.suffix for key in self.writes)
        self.class_names_each_head, self.classes = _groups(settings, context, self.where)
        self.geometry = _geometry(
            settings.target_assigner_config.feature_map_stride, context, given, self.where
        )
        boxes = settings.separate_head_cfg.head_dict
        self.with_velocity = "vel" in boxes
        self.target_assigners = [
            CenterTargetAssigner(group, self.geometry, settings.target_assigner_config, self.with_velocity)
            for group in self.classes
        ]
        self.shared_conv = conv_norm_relu(given.channels, settings.shared_conv_channel, settings)
        self.heads_list = nn.ModuleList(
            SeparateHead(boxes | {"hm": BranchSettings(len(group), settings.num_hm_conv)}, settings)
            for group in self.classes
        )
        self.forward_ret_dict: dict[str, Any] = {}
        self.init_weights()

    @property
    def box_columns(self) -> int:
        """Columns of a predicted box."""
        return 9 if self.with_velocity else 7

    def init_weights(self) -> None:
        for head in self.heads_list:
            head.init_weights()  # type: ignore[operator]

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Predict; in train mode also assign targets.

        Reads:
            spatial_features_2d: (B, C, H, W), H along y, W along x
            gt_boxes (train): (B, G, 8 or 10) [x, y, z, dx, dy, dz, heading, (vx, vy,) class from 1], metres
                and radians in the LiDAR frame, padded with zero rows; not modified
            has_gt_boxes (train, optional): (B,) bool, labelled frames; default: all
            labelled_classes (train, optional): (B, C) bool, classes that a frame is labelled for; default:
                all
        Writes (in eval mode), under this key and ``suffix``:
            final_box_dicts: one dict per sample: pred_boxes (K, 7 or 9), pred_scores (K,), pred_labels (K,)
        """
        shared = self.shared_conv(batch_dict["spatial_features_2d"])
        state: dict[str, Any] = {"pred_dicts": [head(shared) for head in self.heads_list]}
        if self.training:
            columns = 10 if self.with_velocity else 8
            gt_boxes, labelled = boxes_to_learn(batch_dict, self.where, self.labels, columns)
            if labelled is not None:
                chosen = indices_of(labelled)
                gt_boxes = rows_of(gt_boxes, chosen)
                state["pred_dicts"] = [
                    {k: v[chosen] for k, v in maps.items()} for maps in state["pred_dicts"]
                ]
            state["targets"] = self.assign_targets(gt_boxes)
        self.forward_ret_dict = state
        if not self.training:
            found = self.generate_predicted_boxes(state["pred_dicts"])
            batch_dict[f"final_box_dicts{self.suffix}"] = found
        return batch_dict

    def assign_targets(self, gt_boxes: Tensor) -> list[CenterTargets]:
        """Targets of each head for (B, G, 8 or 10) boxes; see CenterTargetAssigner.assign_targets."""
        return [assigner.assign_targets(gt_boxes) for assigner in self.target_assigners]

    @torch.no_grad()
    def generate_predicted_boxes(self, pred_dicts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Raw outputs, one dict per head -> detections, one dict per sample; see center_decoder.detect."""
        return detect(pred_dicts, self.classes, self.geometry, self.settings.post_processing)

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        """Loss of the last forward in train mode, and ``tb_dict`` with its terms."""
        if "targets" not in self.forward_ret_dict:
            raise DataError(
                "get_loss requires a forward in train mode before it, which assigns targets; there was none"
            )
        weights, parts = self.settings.loss_config.loss_weights, {}
        heads = zip(self.forward_ret_dict["pred_dicts"], self.forward_ret_dict["targets"], strict=True)
        counts, forwards = normalizers_of(self), 1
        peaks: Any = [None] * len(self.heads_list)
        boxes: Any = peaks
        if counts is not None:
            forwards, (peaks, boxes) = counts.forwards, counts.values[1:].view(2, -1).unbind()
        for number, (maps, targets) in enumerate(heads):
            codes = torch.cat([maps[name] for name in self.settings.separate_head_cfg.head_order], dim=1)
            per_column = center_box_loss(codes, targets, boxes[number]) * forwards
            located = (per_column * constant(weights.code_weights, per_column.device)).sum()
            heat = heatmap_loss(maps["hm"], targets.heatmaps, peaks=peaks[number]) * forwards
            parts[f"hm_loss_head_{number}"] = heat * weights.cls_weight
            parts[f"loc_loss_head_{number}"] = located * weights.loc_weight
        loss = torch.stack(list(parts.values())).sum()
        figures = for_log(torch.stack([*parts.values(), loss]))
        tb_dict = {} if tb_dict is None else tb_dict
        names = [f"{name}{self.suffix}" for name in (*parts, "rpn_loss")]
        tb_dict.update(zip(names, figures, strict=True))
        return loss, tb_dict

    def normalizers(self) -> Tensor:
        """(1 + 2 heads,) of the last training forward: labelled samples, then peaks, then boxes a head."""
        targets: list[CenterTargets] = self.forward_ret_dict["targets"]
        samples = targets[0].inds.new_full((), len(targets[0].inds))
        peaks = [(part.heatmaps == 1).sum() for part in targets]
        return torch.stack([samples, *peaks, *(part.masks.sum() for part in targets)]).float()

    def __getstate__(self) -> dict[str, Any]:
        # outputs belong to the last batch, and non-leaf tensors can be neither copied nor pickled
        return {**self.__dict__, "forward_ret_dict": {}}


def _groups(
    settings: CenterHeadSettings, context: BuildContext, where: str
) -> tuple[list[list[str]], list[list[int]]]:
    """Names and labels (from 1) of the classes of each head; each class of the data set is in one head."""
    class_names = context.class_names
    names = [[name for name in group if name in class_names] for group in settings.class_names_each_head]
    named = sorted(name for group in names for name in group)
    if named != sorted(class_names) or not all(names):
        raise ConfigError(
            f"{where}: CLASS_NAMES_EACH_HEAD must name each class of CLASS_NAMES once, at least one "
            f"in each head; got {[list(group) for group in settings.class_names_each_head]} for "
            f"{', '.join(class_names)}"
        )
    return names, [[context.labels[class_names.index(name)] for name in group] for group in names]


def _geometry(stride: int, context: BuildContext, given: Features, where: str) -> MapGeometry:
    """Geometry of the feature map; raises ConfigError if FEATURE_MAP_STRIDE does not match its size."""
    width, height = (int(cells) // stride for cells in context.grid_size[:2])
    if (height, width) != (given.height, given.width):
        raise ConfigError(
            f"{where}: FEATURE_MAP_STRIDE {stride} gives {height} x {width} cells, but spatial_features_2d "
            f"has {given.height} x {given.width}. Set it to the stride of the backbones."
        )
    (x, y), (dx, dy) = context.point_cloud_range[:2], context.voxel_size[:2]
    return MapGeometry((x, y), (dx, dy), stride, width, height)
