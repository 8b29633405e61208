"""AnchorHeadMulti: one head per group of similar classes (CBGS, arXiv:1908.09492, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.dense_heads.anchor_head import AnchorHead, State
from pcdet_freeze.models.dense_heads.anchor_head_settings import AnchorHeadMultiSettings, SeparateRegSettings
from pcdet_freeze.models.map_layers import BatchNorm2d, Conv2d, MapSequential, run_together
from pcdet_freeze.models.registry import DENSE_HEADS
from pcdet_freeze.utils.devices import constant


class SeparateBoxes(nn.ModuleDict):
    """Separate convolutions for groups of columns of the box code (CBGS, section 3.3).

    Their channels are concatenated and then split into anchors. With several anchors per cell, a convolution
    therefore does not predict only the columns of its name. OpenPCDet's checkpoints are trained this way.
    """

    def __init__(self, settings: SeparateRegSettings, channels: int, anchors: int) -> None:
        super().__init__(
            {
                f"conv_{name}": conv_stack(settings, channels, anchors * columns)
                for name, columns in settings.columns().items()
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, anchors * columns, H, W)."""
        return torch.cat([conv(features) for conv in self.values()], dim=1)


class GroupHead(nn.Module):
    """Predicts class, box and direction of the anchors of one group of classes.

    Args:
        settings: settings of AnchorHeadMulti.
        channels: channels of the map.
        numbers: numbers of the classes of the group in the head, from 1.
        labels: their labels, from 1.
        classes: number of class columns per anchor.
        anchors: number of anchors of the group per cell.
        code_size: columns of the box code.
    """

    head_label_indices: Tensor

    def __init__(
        self,
        settings: AnchorHeadMultiSettings,
        channels: int,
        numbers: Sequence[int],
        labels: Sequence[int],
        classes: int,
        anchors: int,
        code_size: int,
    ) -> None:
        super().__init__()
        self.labels, self.anchors, self.classes = list(labels), anchors, classes
        # for the key in OpenPCDet's checkpoints; the classes of the config are used, in ``labels``
        self.register_buffer("head_label_indices", torch.tensor(list(numbers)))
        separate = settings.separate_reg_config
        if separate is None:
            self.conv_cls: nn.Module = Conv2d(channels, anchors * classes, 1)
            self.conv_box: nn.Module = Conv2d(channels, anchors * code_size, 1)
        else:
            self.conv_box = SeparateBoxes(separate, channels, anchors)
            self.conv_cls = conv_stack(separate, channels, anchors * classes)
        self.conv_dir_cls: nn.Conv2d | None = None
        if settings.use_direction_classifier:
            self.conv_dir_cls = Conv2d(channels, anchors * settings.num_dir_bins, 1)
        self.init_weights()

    def init_weights(self, prior: float = 0.01) -> None:
        """Initialise class probabilities to ``prior`` (arXiv:1708.02002, section 4.1)."""
        stacks = self.conv_box.values() if isinstance(self.conv_box, SeparateBoxes) else [self.conv_box]
        for stack in stacks:
            nn.init.normal_(last_conv(stack).weight, mean=0, std=0.001)
        bias = last_conv(self.conv_cls).bias
        assert bias is not None
        nn.init.constant_(bias, -math.log((1 - prior) / prior))

    def forward(self, features: Tensor) -> State:
        """(B, C, H, W) -> cls_preds, box_preds, optional dir_cls_preds: (B, anchors * H * W, columns)."""
        convs = {"cls_preds": self.conv_cls, "box_preds": self.conv_box, "dir_cls_preds": self.conv_dir_cls}
        present = {key: conv for key, conv in convs.items() if conv is not None}
        maps = run_together(list(present.values()), features)
        return {key: self._rows(value) for key, value in zip(present, maps, strict=True)}

    def _rows(self, maps: Tensor) -> Tensor:
        """(B, anchors * columns, H, W) -> (B, anchors * H * W, columns)."""
        return maps.unflatten(1, (self.anchors, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)


@DENSE_HEADS.register
class AnchorHeadMulti(AnchorHead):
    """Heads for groups of classes on one map; anchor order: class, size, rotation, height, cell."""

    Settings = AnchorHeadMultiSettings
    writes = (*AnchorHead.writes, "multihead_label_mapping")
    by_class = True

    def __init__(self, settings: AnchorHeadMultiSettings, context: BuildContext) -> None:
        super().__init__(settings, context)
        self._check_groups(settings)
        self.separate = settings.separate_multihead
        channels = self.given.channels
        self.shared_conv: nn.Module | None = None
        if settings.shared_conv_num_filter is not None:
            width = settings.shared_conv_num_filter
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.shared_conv = MapSequential(conv, BatchNorm2d(width, eps=1e-3, momentum=0.01), nn.ReLU())
            channels = width
        self.rpn_heads = nn.ModuleList(
            self._group_head(settings, group.head_cls_name, channels) for group in settings.rpn_head_cfgs
        )

    def _group_head(
        self, settings: AnchorHeadMultiSettings, names: Sequence[str], channels: int
    ) -> GroupHead:
        anchors = sum(c.per_location for c in self.anchor_generator.classes if c.class_name in names)
        classes = len(names) if settings.separate_multihead else self.num_class
        numbers = [self.class_names.index(name) + 1 for name in names]
        labels = [self.labels[number - 1] for number in numbers]
        return GroupHead(settings, channels, numbers, labels, classes, anchors, self.box_coder.code_size)

    def _check_groups(self, settings: AnchorHeadMultiSettings) -> None:
        given = [name for group in settings.rpn_head_cfgs for name in group.head_cls_name]
        wanted = [anchor.class_name for anchor in settings.anchor_generator_config]
        if given != wanted:
            raise ConfigError(
                f"{self.where}: RPN_HEAD_CFGS must name each class of ANCHOR_GENERATOR_CONFIG once, in the "
                f"same order ({', '.join(wanted)}); got {', '.join(given) or 'none'}"
            )

    def predict(self, features: Tensor) -> State:
        """Lists with one tensor (B, anchors of the group, columns) per group."""
        shared = features if self.shared_conv is None else self.shared_conv(features)
        found = [head(shared) for head in self.rpn_heads]
        return {key: [outputs[key] for outputs in found] for key in found[0]}

    def logits(self, state: State) -> list[tuple[Tensor, list[int]]]:
        return list(zip(state["cls_preds"], self._columns(), strict=True))

    def _columns(self) -> list[list[int]]:
        """Labels, from 1, of the class columns of each group."""
        everything = list(self.labels)
        return [head.labels if self.separate else everything for head in self.rpn_heads]  # type: ignore[misc]

    def rows(self, outputs: list[Tensor]) -> Tensor:
        return torch.cat(outputs, dim=1)

    def write_predictions(self, batch_dict: dict[str, Any], state: State) -> None:
        """Write predictions, under these keys and ``suffix``.

        Writes:
            batch_cls_preds: list with logits (B, anchors of the group, class columns) per group
            multihead_label_mapping: list with labels (class columns,) int64, from 1, per group
            batch_box_preds: (B, A, 7 + V) boxes of all groups
            cls_preds_normalized: False, because batch_cls_preds are logits
        """
        boxes = self.decode(state)
        labels = [constant(columns, boxes.device, torch.long) for columns in self._columns()]
        self.write(batch_dict, "batch_cls_preds", [logits.float() for logits in state["cls_preds"]])
        self.write(batch_dict, "batch_box_preds", boxes)
        self.write(batch_dict, "multihead_label_mapping", labels)
        self.write(batch_dict, "cls_preds_normalized", False)


def conv_stack(settings: SeparateRegSettings, channels: int, width: int) -> nn.Sequential:
    """3x3 convolutions with norm and ReLU, and a final one with ``width`` channels."""
    layers: list[nn.Module] = []
    for _ in range(settings.num_middle_conv):
        middle = settings.num_middle_filter
        layers += [
            nn.Conv2d(channels, middle, 3, padding=1, bias=False),
            BatchNorm2d(middle),
            nn.ReLU(),
        ]
        channels = middle
    return MapSequential(*layers, nn.Conv2d(channels, width, 3, padding=1))


def last_conv(stack: nn.Module) -> nn.Conv2d:
    """The convolution itself, or the last one of a stack."""
    last = stack[-1] if isinstance(stack, nn.Sequential) else stack
    assert isinstance(last, nn.Conv2d)
    return last
