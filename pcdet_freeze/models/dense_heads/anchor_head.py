"""Base of the anchor heads: anchors, targets, losses, decoding (SECOND, Sensors 2018, 18(10), 3337)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.dense_heads.anchor_generator import AnchorGenerator
from pcdet_freeze.models.dense_heads.anchor_head_settings import REG_LOSSES, AnchorHeadSettings
from pcdet_freeze.models.dense_heads.box_coder import BOX_CODERS
from pcdet_freeze.models.dense_heads.losses import (
    direction_bins,
    replace_nan_targets,
    sigmoid_focal_loss,
    sine_difference,
)
from pcdet_freeze.models.dense_heads.target_assigner import CANDIDATES, AxisAlignedTargetAssigner
from pcdet_freeze.models.loss_normalization import for_log, normalizers_of
from pcdet_freeze.models.partial_labels import boxes_to_learn
from pcdet_freeze.ops.boxes import limit_period
from pcdet_freeze.utils.devices import constant

State = dict[str, Any]


class AnchorHead(nn.Module):
    """Classifies anchors and regresses boxes relative to them; a subclass computes the raw outputs.

    ``forward_ret_dict`` stores the raw outputs of the last forward and, in train mode, the targets. Copies
    and pickles of the head do not contain it.
    """

    Settings: ClassVar[type[Any]]
    reads = ("spatial_features_2d",)
    writes: tuple[str, ...] = ("batch_cls_preds", "batch_box_preds", "cls_preds_normalized")
    reads_train = ("gt_boxes",)
    by_class: ClassVar[bool] = False
    """order of the anchors, see AnchorGenerator"""

    def __init__(self, settings: AnchorHeadSettings, context: BuildContext) -> None:
        super().__init__()
        self.where = f"MODEL.{context.section} ({type(self).__name__})"
        context.need_voxels(self.where)
        self.given = context.features_of("spatial_features_2d", self.where)
        self.settings, self.class_names = settings, context.class_names
        self.num_class, self.labels = context.num_class, context.labels
        self.suffix = context.suffix
        self.writes = tuple(key + self.suffix for key in self.writes)
        self.predict_boxes_when_training = settings.predict_boxes_when_training
        assigner = settings.target_assigner_config
        coder = assigner.box_coder_config
        self.box_coder = BOX_CODERS[assigner.box_coder](coder.code_size, coder.encode_angle_by_sincos)
        self.anchor_generator = AnchorGenerator(
            settings.anchor_generator_config, context.point_cloud_range, context.grid_size, self.by_class
        )
        _check_map(self.anchor_generator, self.given, self.where)
        self.target_assigner = AxisAlignedTargetAssigner(
            settings.anchor_generator_config,
            context.class_names,
            self.box_coder,
            assigner.norm_by_num_examples,
            assigner.match_height,
            context.labels,
        )
        self.forward_ret_dict: State = {}

    @property
    def anchors(self) -> list[Tensor]:
        """Anchors of each class on the CPU: (heights, H, W, sizes, rotations, 7)."""
        return self.anchor_generator.anchors

    @property
    def box_columns(self) -> int:
        """Columns of a predicted box."""
        return self.box_coder.box_columns

    def predict(self, features: Tensor) -> State:
        """(B, C, H, W) -> raw outputs: cls_preds, box_preds; dir_cls_preds with a direction classifier."""
        raise NotImplementedError(f"{type(self).__name__} must implement predict")

    def logits(self, state: State) -> list[tuple[Tensor, list[int]]]:
        """Consecutive groups of anchors: logits (B, n, c), and the labels, from 1, of the c columns."""
        raise NotImplementedError(f"{type(self).__name__} must implement logits")

    def rows(self, outputs: Any) -> Tensor:
        """Raw boxes or directions -> (B, A, columns)."""
        raise NotImplementedError(f"{type(self).__name__} must implement rows")

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Predict; in train mode also assign targets.

        Reads:
            spatial_features_2d: (B, C, H, W)
            gt_boxes (train): (B, G, 8 + V) [x, y, z, dx, dy, dz, heading, V further columns (velocity),
                class from 1], metres and radians in the LiDAR frame, padded with zero rows; not modified
            has_gt_boxes (train, optional): (B,) bool, labelled frames; default: all
            labelled_classes (train, optional): (B, C) bool, classes that a frame is labelled for; default:
                all
        Writes (in eval mode, or with PREDICT_BOXES_WHEN_TRAINING): see ``write_predictions``
        """
        state = self.predict(batch_dict["spatial_features_2d"])
        if self.training:
            columns = self.box_coder.box_columns + 1
            gt_boxes, labelled = boxes_to_learn(batch_dict, self.where, self.labels, columns)
            self._check_columns(gt_boxes)
            state.update(self.assign_targets(gt_boxes))
            if labelled is not None:
                state["labelled"] = labelled
                state["box_cls_labels"] = state["box_cls_labels"].where(labelled.unsqueeze(1), -1)
        self.forward_ret_dict = state
        if not self.training or self.predict_boxes_when_training:
            self.write_predictions(batch_dict, state)
        return batch_dict

    def write_predictions(self, batch_dict: dict[str, Any], state: State) -> None:
        """Write predictions, under these keys and ``suffix``.

        Writes:
            batch_cls_preds: (B, A, classes) logits
            batch_box_preds: (B, A, 7 + V) boxes, metres and radians
            cls_preds_normalized: False, because batch_cls_preds are logits
        """
        (logits, _), *_ = self.logits(state)
        self.write(batch_dict, "batch_cls_preds", logits.float())
        self.write(batch_dict, "batch_box_preds", self.decode(state))
        self.write(batch_dict, "cls_preds_normalized", False)

    def write(self, batch_dict: dict[str, Any], key: str, value: Any) -> None:
        """Write an output of this head."""
        batch_dict[key + self.suffix] = value

    def assign_targets(self, gt_boxes: Tensor) -> dict[str, Tensor]:
        """Targets for (B, G, 8 + V) boxes; see AxisAlignedTargetAssigner.assign_targets."""
        return self.target_assigner.assign_targets(self.anchor_generator.per_class(gt_boxes.device), gt_boxes)

    def decode(self, state: State) -> Tensor:
        """Raw outputs -> boxes (B, A, 7 + V), float32."""
        codes = self.rows(state["box_preds"]).float()
        boxes = self.box_coder.decode(codes, self.anchor_generator.all(codes.device))
        if "dir_cls_preds" not in state:
            return boxes
        bins, offset = self.settings.num_dir_bins, self.settings.dir_offset
        sector = self.rows(state["dir_cls_preds"]).argmax(dim=-1).to(boxes.dtype)
        period = 2 * math.pi / bins
        within = limit_period(boxes[..., 6] - offset, self.settings.dir_limit_offset, period)
        boxes[..., 6] = within + offset + period * sector
        return boxes

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        """Loss of the last forward in train mode, and ``tb_dict`` with its terms."""
        if "box_cls_labels" not in self.forward_ret_dict:
            raise DataError(
                "get_loss requires a forward in train mode before it, which assigns targets; there was none"
            )
        parts = {"rpn_loss_cls": self.get_cls_layer_loss(), **self.get_box_reg_layer_loss()}
        loss = torch.stack(list(parts.values())).sum()
        figures = for_log(torch.stack([*parts.values(), loss]))
        tb_dict = {} if tb_dict is None else tb_dict
        names = [f"{name}{self.suffix}" for name in (*parts, "rpn_loss")]
        tb_dict.update(zip(names, figures, strict=True))
        return loss, tb_dict

    def get_cls_layer_loss(self) -> Tensor:
        """Focal loss of all anchors that are not ignored, divided by the positives of each sample."""
        labels, weights = self.forward_ret_dict["box_cls_labels"], self.settings.loss_config.loss_weights
        share = (labels >= 0) / (labels > 0).sum(dim=1, keepdim=True).clamp(min=1)
        if weights.pos_cls_weight != 1.0 or weights.neg_cls_weight != 1.0:
            share = share * torch.where(labels > 0, weights.pos_cls_weight, weights.neg_cls_weight)
        total, begin = share.new_zeros(()), 0
        for logits, columns in self.logits(self.forward_ret_dict):
            own = slice(begin, begin + logits.shape[1])
            one_hot = labels[:, own].unsqueeze(-1) == constant(columns, labels.device, labels.dtype)
            total = total + (sigmoid_focal_loss(logits, one_hot).sum(dim=-1) * share[:, own]).sum()
            begin = own.stop
        return total / self._samples() * weights.cls_weight

    def get_box_reg_layer_loss(self) -> dict[str, Tensor]:
        """Box loss and direction loss of the positives, divided by the positives of each sample."""
        state, weights = self.forward_ret_dict, self.settings.loss_config.loss_weights
        labels = state["box_cls_labels"]
        sample, index, counts = self._positives()
        share = 1.0 / (labels > 0).sum(dim=1).clamp(min=1)[sample] / self._samples()
        share = share if counts is None else torch.where(counts, share, 0.0)
        targets = state["box_reg_targets"][sample, index]
        predicted = _counted(self.rows(state["box_preds"])[sample, index].float(), counts)
        valid_targets = replace_nan_targets(predicted, targets)
        plain = self.box_coder.encode_angle_by_sincos
        difference = predicted - valid_targets if plain else sine_difference(predicted, valid_targets)
        difference = difference * constant(weights.code_weights, targets.device)
        box_losses = REG_LOSSES[self.settings.loss_config.reg_loss_type](difference).sum(dim=-1)
        box_weights = state["reg_weights"][sample, index] * share
        losses = {"rpn_loss_loc": (box_losses * box_weights).sum() * weights.loc_weight}
        if "dir_cls_preds" in state:
            anchors = self.anchor_generator.all(labels.device)[index]
            bins = self.settings.num_dir_bins
            sector = direction_bins(targets[:, 6] + anchors[:, 6], self.settings.dir_offset, bins)
            direction_logits = _counted(self.rows(state["dir_cls_preds"])[sample, index].float(), counts)
            entropy = F.cross_entropy(direction_logits, sector, reduction="none")
            losses["rpn_loss_dir"] = (entropy * share).sum() * float(weights.dir_weight or 0.0)
        return losses

    def _positives(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sample (K,) and index (K,) of the positive anchors, and which of them count; None: all.

        On an accelerator the host would wait for their number: there these are all anchors near a box.
        """
        labels, candidates = self.forward_ret_dict["box_cls_labels"], self.forward_ret_dict.get(CANDIDATES)
        if candidates is None:
            sample, index = (labels > 0).nonzero(as_tuple=True)
            return sample, index, None
        anchor = candidates.anchor
        counts = candidates.is_first & (labels.view(-1)[anchor] > 0)
        sample = torch.div(anchor, labels.shape[1], rounding_mode="floor")
        return sample, anchor - sample * labels.shape[1], counts

    def __getstate__(self) -> dict[str, Any]:
        # outputs belong to the last batch, and non-leaf tensors can be neither copied nor pickled
        return {**self.__dict__, "forward_ret_dict": {}}

    def normalizers(self) -> Tensor:
        """(1,) labelled samples of the last training forward."""
        labels = self.forward_ret_dict["box_cls_labels"]
        labelled = self.forward_ret_dict.get("labelled")
        samples = labels.new_full((), len(labels)) if labelled is None else labelled.sum()
        return samples.float().reshape(1)

    def _samples(self) -> Tensor | int:
        """Number of labelled samples, at least 1; the mean over all forwards with several ranks."""
        counts, labelled = normalizers_of(self), self.forward_ret_dict.get("labelled")
        if counts is not None:
            return counts.values[0].clamp(min=1) / counts.forwards
        labels = self.forward_ret_dict["box_cls_labels"]
        return len(labels) if labelled is None else labelled.sum().clamp(min=1)

    def _check_columns(self, gt_boxes: Tensor) -> None:
        if gt_boxes.shape[-1] != self.box_coder.box_columns + 1:
            raise DataError(
                f"{self.where} encodes boxes of {self.box_coder.box_columns} columns, so gt_boxes must have "
                f"{self.box_coder.box_columns + 1} columns, including the class; got {gt_boxes.shape[-1]}. "
                "Set BOX_CODER_CONFIG.code_size to the number of columns of a box (9 with velocity)."
            )


def _counted(rows: Tensor, counts: Tensor | None) -> Tensor:
    """``rows`` with zeros where they do not count, so that an infinite one gives neither loss nor gradient.

    Its loss times 0 would be NaN.
    """
    return rows if counts is None else torch.where(counts.unsqueeze(1), rows, 0.0)


def _check_map(generator: AnchorGenerator, given: Features, where: str) -> None:
    """Check that the grid of the anchors is that of the feature map."""
    for anchor, (nx, ny) in zip(generator.classes, generator.map_sizes, strict=True):
        if (ny, nx) != (given.height, given.width):
            raise ConfigError(
                f"{where}: feature_map_stride {anchor.feature_map_stride} of {anchor.class_name} gives "
                f"{ny} x {nx} cells, but spatial_features_2d has {given.height} x {given.width}. "
                "Set it to the stride of the backbone."
            )
