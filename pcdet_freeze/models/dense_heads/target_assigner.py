"""Assignment of boxes to anchors (SECOND, Sensors 2018, 18(10), 3337, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.dense_heads.anchor_generator import AnchorClass
from pcdet_freeze.models.dense_heads.anchor_windows import grid_of
from pcdet_freeze.models.dense_heads.box_coder import ResidualCoder
from pcdet_freeze.ops.boxes import boxes3d_nearest_bev_iou
from pcdet_freeze.ops.iou import boxes_iou3d

Targets = tuple[Tensor, Tensor, Tensor]
"""targets of one class: labels (B, cells, k), targets (B, cells, k, code_size), weights (B, cells, k)"""


class AxisAlignedTargetAssigner:
    """Assigns boxes to the anchors of their class by the IoU of the nearest axis-aligned BEV boxes.

    An anchor is positive if its maximum IoU is at least ``matched_threshold`` of its class, or if it is the
    best anchor of a box; negative below ``unmatched_threshold``; ignored otherwise. A positive anchor gets
    the class and the residuals of the box with the maximum IoU.

    Args:
        classes: anchor classes, in the order of the outputs of the head.
        class_names: classes of the data set; label 1 is the first one.
        box_coder: encodes regression targets.
        norm_by_num_examples: regression weights are 1 / (number of anchors not ignored) instead of 1.
        match_height: use the 3D IoU.
    """

    def __init__(
        self,
        classes: Sequence[AnchorClass],
        class_names: Sequence[str],
        box_coder: ResidualCoder,
        norm_by_num_examples: bool = False,
        match_height: bool = False,
    ) -> None:
        given, known = [c.class_name for c in classes], list(class_names)
        if sorted(given) != sorted(known):
            raise ConfigError(
                f"ANCHOR_GENERATOR_CONFIG must have one entry for each class, {', '.join(known)}; "
                f"got entries for {', '.join(given) or '(none)'}"
            )
        self.classes = tuple(classes)
        self.labels = [known.index(name) + 1 for name in given]
        self.box_coder = box_coder
        self.norm_by_num_examples = norm_by_num_examples
        self.overlap = boxes_iou3d if match_height else boxes3d_nearest_bev_iou

    @torch.no_grad()
    def assign_targets(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> dict[str, Tensor]:
        """Targets of all anchors, in the order of the outputs of the head.

        Args:
            anchors: anchors of each class, (cells, anchors per cell, 7) or (1, anchors, 7).
            gt_boxes: (B, G, 8 + V) boxes [x, y, z, dx, dy, dz, heading, V further columns, class from 1];
                rows of class 0 are padding. Not modified.

        Returns:
            box_cls_labels (B, A) int32: class, 0 negative, -1 ignored;
            box_reg_targets (B, A, code_size): residuals, zero where not positive;
            reg_weights (B, A): weight of positives, 0 otherwise.
        """
        samples, cells = gt_boxes.shape[0], anchors[0].shape[0]
        boxes, owner = self._list_boxes(gt_boxes)
        # one zero array for all classes, since only rows near a box are written
        rows = samples, cells, sum(own.shape[1] for own in anchors)
        device, begin = anchors[0].device, 0
        labels, weights = _zeros(rows, torch.int32, device), _zeros(rows, torch.float32, device)
        targets = _zeros((*rows, self.box_coder.code_size), torch.float32, device)
        for anchor, label, own in zip(self.classes, self.labels, anchors, strict=True):
            mine, part = boxes[:, -1] == label, slice(begin, begin + own.shape[1])
            out = labels[:, :, part], targets[:, :, part], weights[:, :, part]
            self._assign_class(anchor, label, own, boxes[mine], owner[mine], out)
            begin = part.stop
        labels, targets, weights = (part.flatten(1, 2) for part in (labels, targets, weights))
        return {"box_cls_labels": labels, "box_reg_targets": targets, "reg_weights": weights}

    @staticmethod
    def _list_boxes(gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes of the batch without padding, (N, 8), and the sample of each, (N,)."""
        real = gt_boxes[..., -1] > 0
        return gt_boxes[real].float(), real.nonzero()[:, 0]

    def _assign_class(
        self, anchor: AnchorClass, label: int, cells: Tensor, boxes: Tensor, owner: Tensor, out: Targets
    ) -> None:
        """Write the targets of one class into ``out``, which is zero.

        Anchors far from all boxes are negative; on a regular grid they are skipped.
        """
        if len(boxes) == 0:
            return
        labels, targets, weights = out
        for sample in owner.unique().tolist():
            mine = boxes[owner == sample]
            cell, slot, overlaps = self.overlaps(anchor, cells, mine[:, :7])
            if not len(cell):
                continue
            found, best = self._match(anchor, label, overlaps)
            labels[sample, cell, slot] = found
            positive = found > 0
            cell, slot = cell[positive], slot[positive]
            matched = mine[best[positive], :-1]
            targets[sample, cell, slot] = self.box_coder.encode(matched, cells[cell, slot])
            weights[sample, cell, slot] = self._weight(labels[sample])

    def overlaps(self, anchor: AnchorClass, cells: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cell (K,), slot (K,) and IoU (K, G) of the anchors that can be assigned to a box.

        Args:
            cells: anchors of a class, (cells, anchors per cell, 7).
            boxes: (G, 7), G > 0.
        """
        # with this overlap, an anchor far from all boxes is always negative
        plain = self.overlap is boxes3d_nearest_bev_iou and anchor.unmatched_threshold > 0
        grid = grid_of(cells) if plain and bool(boxes.isfinite().all()) else None
        cell, slot = _everywhere(cells) if grid is None else grid.near(boxes)
        return cell, slot, self.overlap(cells[cell, slot], boxes)

    @staticmethod
    def _match(anchor: AnchorClass, label: int, overlaps: Tensor) -> tuple[Tensor, Tensor]:
        """IoU (A, G), G > 0 -> labels (A,) and the box with the maximum IoU of each anchor, (A,)."""
        best_overlap, best_box = overlaps.max(dim=1)
        best_of_box = overlaps.max(dim=0).values
        best_of_box = torch.where(best_of_box > 0, best_of_box, torch.inf)
        forced = (overlaps == best_of_box).any(dim=1)
        labels = torch.full_like(best_box, -1, dtype=torch.int32)
        labels[best_overlap < anchor.unmatched_threshold] = 0
        labels[forced | (best_overlap >= anchor.matched_threshold)] = label
        return labels, best_box

    def _weight(self, labels: Tensor) -> Tensor | float:
        if not self.norm_by_num_examples:
            return 1.0
        return 1.0 / (labels >= 0).sum().clamp(min=1).float()


def _everywhere(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Cell and slot of all anchors (cells, anchors per cell, 7)."""
    every = torch.arange(cells.shape[0] * cells.shape[1], device=cells.device)
    return every // cells.shape[1], every % cells.shape[1]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.zeros; on a CPU from numpy, whose zero pages are allocated lazily."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    kinds = {torch.int32: np.int32, torch.float32: np.float32}
    return torch.from_numpy(np.zeros(shape, kinds[dtype]))
