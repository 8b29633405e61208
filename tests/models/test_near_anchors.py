"""Anchors are matched in windows around boxes, with the labels that the full matrix gives."""

from __future__ import annotations

import pytest
import torch
from model_cases import RANGE, anchor

from pcdet_freeze.models.dense_heads import near_anchors
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


def test_every_anchor_that_overlaps_a_box_is_near_and_most_others_are_not() -> None:
    cells = AnchorGenerator(classes(), RANGE, [32, 32, 1]).per_class(torch.device("cpu"))[0]
    grid = near_anchors.AnchorGrid.of(cells)
    assert grid is not None
    box = boxes_of(0)[0, :1, :7]
    overlaps = boxes3d_nearest_bev_iou(cells.flatten(0, 1), box)[:, 0] > 0
    near = grid.near(box)
    assert set(overlaps.nonzero()[:, 0].tolist()) <= set(near.tolist())
    assert len(near) < 0.5 * cells.shape[0] * cells.shape[1]


def test_anchors_that_lie_on_no_grid_are_all_looked_at() -> None:
    cells = AnchorGenerator(classes(), RANGE, [32, 32, 1]).per_class(torch.device("cpu"))[0].clone()
    assert near_anchors.AnchorGrid.of(cells.flatten(0, 1).unsqueeze(0)) is None
    cells[5, 0, 0] += 0.1
    assert near_anchors.AnchorGrid.of(cells) is None
