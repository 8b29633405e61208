"""AnchorHeadSingle: 1x1 convolutions for class, box and direction of each anchor (PointPillars, SECOND)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.dense_heads.anchor_head import AnchorHead, State
from pcdet_freeze.models.dense_heads.anchor_head_settings import AnchorHeadSingleSettings
from pcdet_freeze.models.map_layers import Conv2d, run_together
from pcdet_freeze.models.registry import DENSE_HEADS


@DENSE_HEADS.register
class AnchorHeadSingle(AnchorHead):
    """One head for all classes; anchor order: cell (y, x), class, height, size, rotation."""

    Settings = AnchorHeadSingleSettings

    def __init__(self, settings: AnchorHeadSingleSettings, context: BuildContext) -> None:
        super().__init__(settings, context)
        channels = self.given.channels
        per_cell = self.num_anchors_per_location = self.anchor_generator.num_per_location
        self.conv_cls = Conv2d(channels, per_cell * self.num_class, 1)
        self.conv_box = Conv2d(channels, per_cell * self.box_coder.code_size, 1)
        self.conv_dir_cls: nn.Conv2d | None = None
        if settings.use_direction_classifier:
            self.conv_dir_cls = Conv2d(channels, per_cell * settings.num_dir_bins, 1)
        self.init_weights()

    def init_weights(self, prior: float = 0.01) -> None:
        """Initialise class probabilities to ``prior`` (arXiv:1708.02002, section 4.1)."""
        nn.init.constant_(self.conv_cls.bias, -math.log((1 - prior) / prior))  # type: ignore[arg-type]
        nn.init.normal_(self.conv_box.weight, mean=0, std=0.001)

    def predict(self, features: Tensor) -> State:
        """Maps (B, H, W, anchors per cell * columns)."""
        convs = {"cls_preds": self.conv_cls, "box_preds": self.conv_box, "dir_cls_preds": self.conv_dir_cls}
        present = {key: conv for key, conv in convs.items() if conv is not None}
        maps = run_together(list(present.values()), features)
        return {key: value.permute(0, 2, 3, 1).contiguous() for key, value in zip(present, maps, strict=True)}

    def logits(self, state: State) -> list[tuple[Tensor, list[int]]]:
        cls_preds = state["cls_preds"]
        return [(cls_preds.view(len(cls_preds), -1, self.num_class), list(self.labels))]

    def rows(self, outputs: Tensor) -> Tensor:
        return outputs.view(len(outputs), len(self.anchor_generator.all(outputs.device)), -1)
