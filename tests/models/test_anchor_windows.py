"""Anchors are matched in windows around boxes, with the labels of the full IoU matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_cases import RANGE, anchor

from pcdet_freeze.models.dense_heads import anchor_windows
from pcdet_freeze.models.dense_heads.anchor_generator import AnchorClass, AnchorGenerator
from pcdet_freeze.models.dense_heads.box_coder import ResidualCoder
from pcdet_freeze.models.dense_heads.target_assigner import AxisAlignedTargetAssigner
from pcdet_freeze.ops.boxes import boxes3d_nearest_bev_iou


def classes() -> list[AnchorClass]:
    configs = [anchor("Car", [3.9, 1.6, 1.56]), anchor("Pedestrian", [0.8, 0.6, 1.73], 0.5, 0.35)]
    return [AnchorClass(**config) for config in configs]


def boxes_of(seed: int, count: int = 12) -> torch.Tensor:
    """(3, count, 8) boxes in and around the range, with padding; the last sample is empty."""
    draw = torch.Generator().manual_seed(seed)
    boxes = torch.rand(3, count, 8, generator=draw)
    boxes[..., :3] = boxes[..., :3] * torch.tensor([20.0, 20, 2]) - torch.tensor([2.0, 10, 2])
    boxes[..., 3:6] = 0.3 + boxes[..., 3:6] * 5
    boxes[..., 6] = boxes[..., 6] * 7 - 3.5
    boxes[..., 7] = torch.randint(0, 3, (3, count), generator=draw)
    boxes[2] = 0
    return boxes


@pytest.mark.parametrize("seed", range(8))
def test_windows_give_the_labels_and_targets_of_the_full_matrix(seed: int) -> None:
    generator = AnchorGenerator(classes(), RANGE, [32, 32, 1])
    anchors, boxes = generator.per_class(torch.device("cpu")), boxes_of(seed)
    window = AxisAlignedTargetAssigner(classes(), ["Car", "Pedestrian"], ResidualCoder())
    full = AxisAlignedTargetAssigner(classes(), ["Car", "Pedestrian"], ResidualCoder())
    full.overlap = lambda a, b: boxes3d_nearest_bev_iou(a, b)  # another function: no windows
    expected, found = full.assign_targets(anchors, boxes), window.assign_targets(anchors, boxes)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert (found["box_cls_labels"] > 0).any()


def by_hand(anchors: tuple[torch.Tensor, ...], boxes: torch.Tensor) -> torch.Tensor:
    """Labels (B, A) from the full IoU matrix of each sample and class, implemented directly."""
    samples = []
    for sample in boxes:
        parts = []
        for label, (settings, cells) in enumerate(zip(classes(), anchors, strict=True), start=1):
            mine = sample[sample[:, 7] == label][:, :7]
            found = torch.zeros(cells.shape[0] * cells.shape[1], dtype=torch.int32)
            if len(mine):
                overlaps = boxes3d_nearest_bev_iou(cells.flatten(0, 1), mine)
                found[overlaps.amax(dim=1) >= settings.unmatched_threshold] = -1
                found[overlaps.amax(dim=1) >= settings.matched_threshold] = label
                found[((overlaps == overlaps.amax(dim=0)) & (overlaps > 0)).any(dim=1)] = label
            parts.append(found.view(cells.shape[:2]))
        samples.append(torch.cat(parts, dim=1).flatten())
    return torch.stack(samples)


def odd_scene(seed: int) -> torch.Tensor:
    """(4, 6, 8): boxes on the grid with equal overlaps, the same box twice, far outside, and none at all."""
    boxes = boxes_of(seed, 6)[[0, 1, 0, 2]].clone()
    boxes[0, :, :2] = boxes[0, :, :2].round()  # between anchors, whose overlaps are then equal
    boxes[0, :, 6] = 0
    boxes[1, 3:] = boxes[1, :3]
    boxes[2, :, :2] += 100.0 * (1 - 2 * (seed % 2))
    boxes[2, 0, :2] = torch.tensor([16.9, 8.0])  # only its rim lies in the range
    return boxes


@pytest.mark.parametrize("seed", range(40))
def test_labels_are_those_of_the_full_matrix_in_scenes_of_every_kind(seed: int) -> None:
    anchors = AnchorGenerator(classes(), RANGE, [32, 32, 1]).per_class(torch.device("cpu"))
    assigner = AxisAlignedTargetAssigner(classes(), ["Car", "Pedestrian"], ResidualCoder())
    for boxes in (boxes_of(seed), odd_scene(seed)):
        found = assigner.assign_targets(anchors, boxes)
        assert torch.equal(found["box_cls_labels"], by_hand(anchors, boxes))
        assert torch.equal(found["reg_weights"], (found["box_cls_labels"] > 0).float())


def test_every_anchor_that_overlaps_a_box_is_near_and_most_others_are_not() -> None:
    anchors = AnchorGenerator(classes(), RANGE, [32, 32, 1]).per_class(torch.device("cpu"))
    grid = anchor_windows.AnchorGrid.of(anchors)
    assert grid is not None
    box = boxes_of(0)[0, :1, :7]
    overlaps = boxes3d_nearest_bev_iou(torch.cat(anchors, dim=1).flatten(0, 1), box)[:, 0]
    near = anchor_windows.Pairs.of(grid, grid.windows(box, np.zeros(1, int), np.zeros(1, int)))
    of_class = torch.arange(len(overlaps)) % 4 < 2
    assert set(((overlaps > 0) & of_class).nonzero()[:, 0].tolist()) <= set(near.anchor.tolist())
    assert len(near.anchor) < 0.5 * of_class.sum()
    assert torch.equal(near.overlap, overlaps[near.anchor])


def test_anchors_ordered_by_class_lie_on_the_same_grid() -> None:
    generator = AnchorGenerator(classes(), RANGE, [32, 32, 1], by_class=True)
    anchors, boxes = generator.per_class(torch.device("cpu")), boxes_of(1)
    assigner = AxisAlignedTargetAssigner(classes(), ["Car", "Pedestrian"], ResidualCoder(), True)
    assert anchor_windows.grid_of(anchors) is not None
    found = assigner.assign_targets(anchors, boxes)
    assigner.overlap = lambda a, b: boxes3d_nearest_bev_iou(a, b)
    expected = assigner.assign_targets(anchors, boxes)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_anchors_that_lie_on_no_grid_are_all_looked_at() -> None:
    cells = AnchorGenerator(classes(), RANGE, [32, 32, 1]).per_class(torch.device("cpu"))[0].clone()
    assert anchor_windows.AnchorGrid.of([cells.flatten(0, 1).unsqueeze(0)]) is None
    cells[5, 0, 0] += 0.1
    assert anchor_windows.AnchorGrid.of([cells]) is None


def test_a_box_that_is_not_finite_is_compared_with_all_anchors() -> None:
    anchors = AnchorGenerator(classes(), RANGE, [32, 32, 1]).per_class(torch.device("cpu"))
    boxes = boxes_of(2)
    boxes[0, 0, 0], boxes[0, 0, 7] = torch.nan, 1
    assigner = AxisAlignedTargetAssigner(classes(), ["Car", "Pedestrian"], ResidualCoder())
    found = assigner.assign_targets(anchors, boxes)
    assert found["box_cls_labels"].view(3, -1, 4)[0, :, :2].all()  # ignored, or the best of another box
    assert torch.equal(found["box_cls_labels"][1], by_hand(anchors, boxes)[1])
