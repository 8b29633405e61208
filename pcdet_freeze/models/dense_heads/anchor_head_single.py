"""AnchorHeadSingle: class, box and direction of every anchor by 1x1 convolutions (PointPillars, SECOND)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.dense_heads.anchor_generator import AnchorGenerator
from pcdet_freeze.models.dense_heads.anchor_head_settings import REG_LOSSES, AnchorHeadSingleSettings
from pcdet_freeze.models.dense_heads.box_coder import ResidualCoder
from pcdet_freeze.models.dense_heads.losses import direction_bins, sigmoid_focal_loss, sine_difference
from pcdet_freeze.models.dense_heads.target_assigner import AxisAlignedTargetAssigner
from pcdet_freeze.models.registry import DENSE_HEADS
from pcdet_freeze.ops.boxes import limit_period

WHERE = "MODEL.DENSE_HEAD (AnchorHeadSingle)"


@DENSE_HEADS.register
class AnchorHeadSingle(nn.Module):
    """One head for all classes.

    ``forward_ret_dict`` holds the last forward's raw outputs and, in train mode, targets, until the next
    forward; copies and pickles of the head leave it out.
    """

    Settings = AnchorHeadSingleSettings
    reads = ("spatial_features_2d",)
    writes = ("batch_cls_preds", "batch_box_preds", "cls_preds_normalized")
    reads_train = ("gt_boxes",)

    def __init__(self, settings: AnchorHeadSingleSettings, context: BuildContext) -> None:
        super().__init__()
        context.need_voxels(WHERE)
        given = context.features_of("spatial_features_2d", WHERE)
        self.settings = settings
        self.num_class = context.num_class
        self.predict_boxes_when_training = settings.predict_boxes_when_training
        self.box_coder = ResidualCoder()
        self.anchor_generator = AnchorGenerator(
            settings.anchor_generator_config, context.point_cloud_range, context.grid_size
        )
        _check_map(self.anchor_generator, given)
        assigner = settings.target_assigner_config
        self.target_assigner = AxisAlignedTargetAssigner(
            settings.anchor_generator_config,
            context.class_names,
            self.box_coder,
            assigner.norm_by_num_examples,
            assigner.match_height,
        )
        per_cell = self.num_anchors_per_location = self.anchor_generator.num_per_location
        self.conv_cls = nn.Conv2d(given.channels, per_cell * self.num_class, 1)
        self.conv_box = nn.Conv2d(given.channels, per_cell * self.box_coder.code_size, 1)
        self.conv_dir_cls: nn.Conv2d | None = None
        if settings.use_direction_classifier:
            self.conv_dir_cls = nn.Conv2d(given.channels, per_cell * settings.num_dir_bins, 1)
        self.forward_ret_dict: dict[str, Any] = {}
        self.init_weights()

    def init_weights(self, prior: float = 0.01) -> None:
        """Every anchor starts as background: probability ``prior`` (arXiv:1708.02002, section 4.1)."""
        nn.init.constant_(self.conv_cls.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]
        nn.init.normal_(self.conv_box.weight, mean=0, std=0.001)

    @property
    def anchors(self) -> list[Tensor]:
        """A class each, on the CPU: (heights, H, W, sizes, rotations, 7)."""
        return self.anchor_generator.anchors

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Predict; in train mode also assign targets.

        Reads:
            spatial_features_2d: (B, C, H, W)
            gt_boxes (train): (B, G, 8) [x, y, z, dx, dy, dz, heading, class from 1], metres and radians
                in the LiDAR frame, zero rows as padding; never written to
        Writes (in eval mode, or with PREDICT_BOXES_WHEN_TRAINING):
            batch_cls_preds: (B, A, classes) logits
            batch_box_preds: (B, A, 7) boxes, metres and radians
            cls_preds_normalized: False, since batch_cls_preds are logits
        """
        features = batch_dict["spatial_features_2d"]
        state = {
            "cls_preds": self.conv_cls(features).permute(0, 2, 3, 1).contiguous(),
            "box_preds": self.conv_box(features).permute(0, 2, 3, 1).contiguous(),
        }
        if self.conv_dir_cls is not None:
            state["dir_cls_preds"] = self.conv_dir_cls(features).permute(0, 2, 3, 1).contiguous()
        if self.training:
            state.update(self.assign_targets(_labels_of(batch_dict)))
        self.forward_ret_dict = state
        if not self.training or self.predict_boxes_when_training:
            scores, boxes = self.generate_predicted_boxes(
                len(features), state["cls_preds"], state["box_preds"], state.get("dir_cls_preds")
            )
            batch_dict["batch_cls_preds"], batch_dict["batch_box_preds"] = scores, boxes
            batch_dict["cls_preds_normalized"] = False
        return batch_dict

    def assign_targets(self, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Targets for (B, G, 8) boxes; see AxisAlignedTargetAssigner.assign_targets."""
        return self.target_assigner.assign_targets(self.anchor_generator.per_class(gt_boxes.device), gt_boxes)

    def generate_predicted_boxes(
        self, batch_size: int, cls_preds: Tensor, box_preds: Tensor, dir_cls_preds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Raw outputs (B, H, W, ...) -> logits (B, A, classes) and boxes (B, A, 7), both float32."""
        anchors = self.anchor_generator.all(box_preds.device)
        logits = cls_preds.float().view(batch_size, -1, self.num_class)
        boxes = self.box_coder.decode(box_preds.float().view(batch_size, len(anchors), -1), anchors)
        if dir_cls_preds is None:
            return logits, boxes
        bins, offset = self.settings.num_dir_bins, self.settings.dir_offset
        sector = dir_cls_preds.view(batch_size, -1, bins).argmax(dim=-1).to(boxes.dtype)
        period = 2 * math.pi / bins
        within = limit_period(boxes[..., 6] - offset, self.settings.dir_limit_offset, period)
        boxes[..., 6] = within + offset + period * sector
        return logits, boxes

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        """Loss of the last forward in train mode, and ``tb_dict`` with its parts added."""
        if "box_cls_labels" not in self.forward_ret_dict:
            raise DataError(
                "get_loss needs a forward in train mode first, which assigns targets; there was none"
            )
        parts = {"rpn_loss_cls": self.get_cls_layer_loss(), **self.get_box_reg_layer_loss()}
        loss = torch.stack(list(parts.values())).sum()
        # one transfer for all figures: each would be a wait for the GPU
        figures = torch.stack([*parts.values(), loss]).tolist()
        tb_dict = {} if tb_dict is None else tb_dict
        tb_dict.update(zip([*parts, "rpn_loss"], figures, strict=True))
        return loss, tb_dict

    def get_cls_layer_loss(self) -> Tensor:
        """Focal loss of all anchors that are not ignored, over each sample's number of positives."""
        labels = self.forward_ret_dict["box_cls_labels"]
        logits = self.forward_ret_dict["cls_preds"].view(len(labels), -1, self.num_class)
        classes = torch.arange(1, self.num_class + 1, device=labels.device)
        losses = sigmoid_focal_loss(logits, labels.unsqueeze(-1) == classes).sum(dim=-1)
        weights = (labels >= 0) / (labels > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return (losses * weights).sum() / len(labels) * self.settings.loss_config.loss_weights.cls_weight

    def get_box_reg_layer_loss(self) -> dict[str, Tensor]:
        """Box loss and direction loss of the positives, over each sample's number of positives."""
        state, weights = self.forward_ret_dict, self.settings.loss_config.loss_weights
        labels = state["box_cls_labels"]
        samples = len(labels)
        sample, index = (labels > 0).nonzero(as_tuple=True)
        share = 1.0 / (labels > 0).sum(dim=1).clamp(min=1)[sample] / samples
        targets = state["box_reg_targets"][sample, index]
        predicted = state["box_preds"].view(samples, labels.shape[1], -1)[sample, index].float()
        difference = sine_difference(predicted, targets) * targets.new_tensor(weights.code_weights)
        distance = REG_LOSSES[self.settings.loss_config.reg_loss_type](difference).sum(dim=-1)
        box_weights = state["reg_weights"][sample, index] * share
        losses = {"rpn_loss_loc": (distance * box_weights).sum() * weights.loc_weight}
        if "dir_cls_preds" in state:
            anchors = self.anchor_generator.all(labels.device)[index]
            bins = self.settings.num_dir_bins
            wanted = direction_bins(targets[:, 6] + anchors[:, 6], self.settings.dir_offset, bins)
            guessed = state["dir_cls_preds"].view(samples, labels.shape[1], -1)[sample, index].float()
            entropy = F.cross_entropy(guessed, wanted, reduction="none")
            losses["rpn_loss_dir"] = (entropy * share).sum() * float(weights.dir_weight or 0.0)
        return losses

    def __getstate__(self) -> dict[str, Any]:
        # outputs belong to the last batch, and tensors inside a graph can be neither copied nor pickled
        return {**self.__dict__, "forward_ret_dict": {}}


def _labels_of(batch_dict: dict[str, Any]) -> Tensor:
    if "gt_boxes" not in batch_dict:
        raise DataError(
            f"{WHERE} needs gt_boxes to train; the batch has none: freeze the head, or add labels"
        )
    return batch_dict["gt_boxes"]


def _check_map(generator: AnchorGenerator, given: Features) -> None:
    """Anchors must lie on the cells of the map that the convolutions see."""
    for anchor, (nx, ny) in zip(generator.classes, generator.map_sizes, strict=True):
        if (ny, nx) != (given.height, given.width):
            raise ConfigError(
                f"{WHERE}: feature_map_stride {anchor.feature_map_stride} of {anchor.class_name} gives "
                f"{ny} x {nx} cells, but spatial_features_2d has {given.height} x {given.width}: "
                "set it to the backbone's stride"
            )
