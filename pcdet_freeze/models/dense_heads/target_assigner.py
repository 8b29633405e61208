"""Assignment of boxes to anchors (SECOND, Sensors 2018, 18(10), 3337, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.dense_heads.anchor_generator import AnchorClass
from pcdet_freeze.models.dense_heads.anchor_windows import AnchorGrid, Pairs, grid_of
from pcdet_freeze.models.dense_heads.box_coder import ResidualCoder
from pcdet_freeze.ops.boxes import boxes3d_nearest_bev_iou
from pcdet_freeze.ops.iou import boxes_iou3d
from pcdet_freeze.utils.devices import constant, host_copy, is_accelerator, send_together

CANDIDATES = "candidates"


@dataclass(frozen=True)
class Candidates:
    """The anchors that may be positive, on an accelerator, where the positive ones cannot be listed without
    waiting for it."""

    anchor: Tensor
    """(K,) int64 index into the anchors of all samples; repeated for each box that an anchor may overlap"""
    is_first: Tensor
    """(K,) bool, true once for each anchor"""


class AxisAlignedTargetAssigner:
    """Assigns boxes to the anchors of their class by the IoU of the nearest axis-aligned BEV boxes.

    An anchor is positive if its maximum IoU is at least ``matched_threshold`` of its class, or if it is the
    best anchor of a box; negative below ``unmatched_threshold``; ignored otherwise. A positive anchor gets
    the class and the residuals of the box with the maximum IoU.

    Args:
        classes: anchor classes, in the order of the outputs of the head.
        class_names: classes of the head.
        box_coder: encodes regression targets.
        norm_by_num_examples: regression weights are 1 / (number of anchors not ignored) instead of 1.
        match_height: use the 3D IoU.
        labels: label in gt_boxes of each of ``class_names``; default: 1, 2, ...
    """

    def __init__(
        self,
        classes: Sequence[AnchorClass],
        class_names: Sequence[str],
        box_coder: ResidualCoder,
        norm_by_num_examples: bool = False,
        match_height: bool = False,
        labels: Sequence[int] | None = None,
    ) -> None:
        given, known = [c.class_name for c in classes], list(class_names)
        if sorted(given) != sorted(known):
            raise ConfigError(
                f"ANCHOR_GENERATOR_CONFIG must have one entry for each class, {', '.join(known)}; "
                f"got entries for {', '.join(given) or '(none)'}"
            )
        self.classes = tuple(classes)
        numbers = labels or range(1, len(known) + 1)
        self.labels = [numbers[known.index(name)] for name in given]
        self.box_coder = box_coder
        self.norm_by_num_examples = norm_by_num_examples
        self.overlap = boxes_iou3d if match_height else boxes3d_nearest_bev_iou

    @torch.no_grad()
    def assign_targets(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> dict[str, Any]:
        """Targets of all anchors, in the order of the outputs of the head.

        The whole batch is assigned at once, from the pairs of a box and an anchor near it. The host reads the
        boxes as they were before they were copied to a device (``utils.devices.host_copy``).

        Args:
            anchors: anchors of each class, (cells, anchors per cell, 7) or (1, anchors, 7).
            gt_boxes: (B, G, 8 + V) boxes [x, y, z, dx, dy, dz, heading, V further columns, class from 1];
                rows of class 0 are padding. Not modified.

        Returns:
            box_cls_labels (B, A) int32: class, 0 negative, -1 ignored;
            box_reg_targets (B, A, code_size): residuals, zero where not positive;
            reg_weights (B, A): weight of positives, 0 otherwise;
            on an accelerator candidates: :class:`Candidates`, unless the anchors are on no regular grid.
        """
        found = self.list_boxes(host_copy(gt_boxes))
        grid = self._grid(anchors) if bool(found.rows.isfinite().all()) else None
        cells, slots = anchors[0].shape[0], sum(own.shape[1] for own in anchors)
        out = Targets.zeros(len(gt_boxes), cells * slots, self.box_coder.code_size, gt_boxes.device)
        targets: dict[str, Any] = out.named()
        if grid is None:
            self._assign_each(anchors, found, out)
        elif (candidates := self._assign_near(grid, found, out)) is not None:
            targets[CANDIDATES] = candidates
        return targets

    def list_boxes(self, gt_boxes: Tensor) -> Boxes:
        """Boxes of the batch on the CPU, without padding and unknown classes."""
        number = gt_boxes[..., -1]
        kind = torch.full(number.shape, -1, dtype=torch.long)
        for index, label in enumerate(self.labels):
            kind.masked_fill_(number == label, index)
        sample, row = (kind >= 0).nonzero(as_tuple=True)
        return Boxes(gt_boxes[sample, row].float(), sample, kind[sample, row])

    def _grid(self, anchors: Sequence[Tensor]) -> AnchorGrid | None:
        # with this overlap and a threshold above 0, an anchor far from all boxes is always negative
        plain = self.overlap is boxes3d_nearest_bev_iou
        is_far_negative = all(anchor.unmatched_threshold > 0 for anchor in self.classes)
        return grid_of(anchors) if plain and is_far_negative else None

    def near(self, grid: AnchorGrid, boxes: Boxes) -> Pairs:
        """Pairs of a box and an anchor of its class near it."""
        return Pairs.of(grid, grid.windows(boxes.rows[:, :7], boxes.sample.numpy(), boxes.kind.numpy()))

    def _assign_near(self, grid: AnchorGrid, boxes: Boxes, out: Targets) -> Candidates | None:
        """Write the targets of the anchors near boxes into ``out``; all others are negative."""
        device = out.labels.device
        if not len(boxes.rows):
            return None
        pairs = self.near(grid, boxes)
        rows, kind, sample = send_together([boxes.rows, boxes.kind, boxes.sample], device)
        kind = kind[pairs.box]
        label, is_first, winner = self._match(pairs, kind, len(rows), out.labels.numel())
        out.labels.view(-1)[pairs.anchor] = label
        # on an accelerator the number of positives is not known: all pairs of an anchor write the same values
        chosen = torch.where(label > 0)[0] if not is_accelerator(device) else slice(None)
        anchor, slot, matched = pairs.anchor[chosen], pairs.slot[chosen], rows[winner[chosen], :-1]
        place = torch.stack([pairs.x[chosen], pairs.y[chosen]], dim=1)
        codes = self.box_coder.encode(matched, torch.cat([place, grid.rest[slot]], dim=1))
        is_positive = label[chosen] > 0
        share = self._share(
            grid, label, is_first, sample[pairs.box] * len(self.classes) + kind, len(out.labels)
        )
        out.codes.view(-1, codes.shape[1])[anchor] = torch.where(is_positive.unsqueeze(1), codes, 0.0)
        weights = torch.where(is_positive, 1.0 if share is None else share[chosen], 0.0)
        out.weights.view(-1)[anchor] = weights
        return Candidates(pairs.anchor, is_first) if is_accelerator(device) else None

    def _match(self, pairs: Pairs, kind: Tensor, boxes: int, anchors: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each pair (K,): label of its anchor, whether it is its anchor's first pair with the maximum IoU,
        and the box with the maximum IoU of its anchor, the first of several."""
        overlap, device = pairs.overlap, pairs.overlap.device
        best = zeros((anchors,), torch.float32, device).scatter_reduce_(0, pairs.anchor, overlap, "amax")
        best = best[pairs.anchor]
        of_box = overlap.new_zeros(boxes).scatter_reduce_(0, pairs.box, overlap, "amax")[pairs.box]
        rank = torch.where(overlap == best, boxes - pairs.box, 0).int()
        first = zeros((anchors,), torch.int32, device).scatter_reduce_(0, pairs.anchor, rank, "amax")
        first = first[pairs.anchor]
        is_best_of_box = ((overlap == of_box) & (overlap > 0)).int()
        forced = zeros((anchors,), torch.int32, device).scatter_reduce_(
            0, pairs.anchor, is_best_of_box, "amax"
        )
        matched, unmatched = (
            constant([getattr(anchor, key) for anchor in self.classes], device)[kind]
            for key in ("matched_threshold", "unmatched_threshold")
        )
        number = constant(self.labels, device, torch.int32)[kind]
        label = torch.where(best < unmatched, 0, -1).int()
        label = torch.where((forced[pairs.anchor] > 0) | (best >= matched), number, label)
        return label, rank == first, boxes - first.long()

    def _share(
        self, grid: AnchorGrid, label: Tensor, is_first: Tensor, group: Tensor, samples: int
    ) -> Tensor | None:
        """(K,) 1 / number of anchors of the sample and class that are not ignored; None: the weight is 1."""
        if not self.norm_by_num_examples:
            return None
        cells = grid.axes[:, 0, 2] * grid.axes[:, 1, 2] * grid.slot_of[:, 1]
        total = constant(cells.tolist(), label.device, torch.long).repeat(samples)
        ignored = torch.zeros_like(total).index_add_(0, group, (is_first & (label < 0)).long())
        return 1.0 / (total - ignored).clamp(min=1).float()[group]

    def _assign_each(self, anchors: Sequence[Tensor], boxes: Boxes, out: Targets) -> None:
        """Write the targets of all anchors into ``out``, sample by sample and class by class.

        For anchors on no regular grid, 3D IoU, an ``unmatched_threshold`` of 0, and boxes that are not
        finite. On an accelerator the host waits.
        """
        device, cells = out.labels.device, anchors[0].shape[0]
        slots, begin = sum(own.shape[1] for own in anchors), 0
        for index, own in enumerate(anchors):
            part, begin = slice(begin, begin + own.shape[1]), begin + own.shape[1]
            for sample in range(len(out.labels)):
                mine = boxes.rows[(boxes.sample == sample) & (boxes.kind == index)].to(device)
                if not len(mine):
                    continue
                flat = own.reshape(-1, own.shape[-1])
                overlaps = self.overlap(flat, mine[:, :7])
                labels, best = _match_all(self.classes[index], self.labels[index], overlaps)
                positive = labels > 0
                codes = flat.new_zeros(len(flat), self.box_coder.code_size)
                codes[positive] = self.box_coder.encode(mine[best[positive], :-1], flat[positive])
                weight: Tensor | float = 1.0
                if self.norm_by_num_examples:
                    weight = 1.0 / (labels >= 0).sum().clamp(min=1).float()
                for values, whole in (
                    (labels, out.labels),
                    (codes, out.codes),
                    (torch.where(positive, weight, 0.0), out.weights),
                ):
                    rows = whole[sample].view(cells, slots, *whole.shape[2:])
                    rows[:, part] = values.view(cells, -1, *whole.shape[2:])


@dataclass(frozen=True)
class Boxes:
    """Boxes of a batch on the CPU."""

    rows: Tensor
    """(N, 8 + V) float32, as in gt_boxes"""
    sample: Tensor
    """(N,) int64, ascending"""
    kind: Tensor
    """(N,) int64, index into the anchor classes"""


@dataclass(frozen=True)
class Targets:
    """Targets of all anchors: labels (B, A) int32, codes (B, A, code_size), weights (B, A)."""

    labels: Tensor
    codes: Tensor
    weights: Tensor

    @classmethod
    def zeros(cls, samples: int, anchors: int, code_size: int, device: torch.device) -> Targets:
        return cls(
            zeros((samples, anchors), torch.int32, device),
            zeros((samples, anchors, code_size), torch.float32, device),
            zeros((samples, anchors), torch.float32, device),
        )

    def named(self) -> dict[str, Any]:
        """As in the state of a head."""
        return {"box_cls_labels": self.labels, "box_reg_targets": self.codes, "reg_weights": self.weights}


def _match_all(anchor: AnchorClass, label: int, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (A, G), G > 0 -> labels (A,) and the box with the maximum IoU of each anchor, (A,)."""
    best_overlap, best_box = overlaps.max(dim=1)
    best_of_box = overlaps.max(dim=0).values
    best_of_box = torch.where(best_of_box > 0, best_of_box, torch.inf)
    forced = (overlaps == best_of_box).any(dim=1)
    labels = torch.full_like(best_box, -1, dtype=torch.int32)
    labels[best_overlap < anchor.unmatched_threshold] = 0
    labels[forced | (best_overlap >= anchor.matched_threshold)] = label
    return labels, best_box


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.zeros; on a CPU from numpy, whose zero pages are allocated lazily: only rows near a box are
    written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    kinds = {torch.int32: np.int32, torch.float32: np.float32}
    return torch.from_numpy(np.zeros(shape, kinds[dtype]))
