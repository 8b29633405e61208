"""Time the operators for anchor targets and rotated IoU, on fixed inputs and after a first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.bench.timing import Spread, interleave, timed
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.dense_heads import AxisAlignedTargetAssigner
from pcdet_freeze.models.dense_heads.anchor_windows import grid_of
from pcdet_freeze.ops.iou import boxes_iou_bev

FULL, WINDOW, ASSIGN = "overlaps, all anchors", "overlaps, windows", "whole assignment"
SPARSE, DENSE = "BEV IoU 200x200", "BEV IoU 200x200, crowded"
COUNT = 200
SIDES = {SPARSE: 70.0, DENSE: 8.0}
"""side in metres of the square in which the boxes lie: few pairs overlap, or most do"""


def measure_operators(head: nn.Module, gt_boxes: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Return rows for overlaps of all anchors, overlaps in windows, target assignment, and BEV IoU.

    ``time_ratio`` is to the first row; ``equal`` says whether windows give the labels and targets that all
    anchors give. BEV IoU is that of 200 boxes with 200 boxes.

    Args:
        head: an anchor head.
        gt_boxes: (B, G, 8), as in a batch_dict: box in metres and radians, class.

    Raises:
        ConfigError: ``head`` has no anchors.
    """
    assigner = getattr(head, "target_assigner", None)
    if not isinstance(assigner, AxisAlignedTargetAssigner):
        raise ConfigError(
            f"--what operators needs a dense_head with anchors; got {type(head).__name__}: "
            "give another --cfg_file"
        )
    anchors = head.anchor_generator.per_class(gt_boxes.device)  # type: ignore[union-attr, operator]
    full = _without_windows(assigner)
    tasks: dict[str, Callable[[], Any]] = {
        FULL: lambda: _all_overlaps(full, anchors, gt_boxes),
        WINDOW: lambda: _near_overlaps(assigner, anchors, gt_boxes),
        ASSIGN: lambda: assigner.assign_targets(anchors, gt_boxes),
    }
    expected, found = (one.assign_targets(anchors, gt_boxes) for one in (full, assigner))
    equal = all(torch.equal(expected[key], found[key]) for key in expected)
    seconds = interleave(tasks, rounds, gt_boxes.device)
    fixed = {"anchors": sum(part.numel() // 7 for part in anchors), "equal": equal}
    rows = [{"variant": name, **timed(seconds, name, FULL), **fixed} for name in tasks]
    return [*rows, *_iou_rows(rounds, gt_boxes.device)]


def _without_windows(assigner: AxisAlignedTargetAssigner) -> AxisAlignedTargetAssigner:
    """A copy that computes overlaps of every anchor: windows are used with one overlap function alone."""
    made = AxisAlignedTargetAssigner.__new__(AxisAlignedTargetAssigner)
    made.__dict__.update(assigner.__dict__)
    made.__dict__["overlap"] = lambda a, b: assigner.overlap(a, b)
    return made


def _all_overlaps(assigner: AxisAlignedTargetAssigner, anchors: tuple[Tensor, ...], gt_boxes: Tensor) -> None:
    """Compute the overlaps of all anchors, for each sample and class."""
    for sample in gt_boxes:
        for label, cells in zip(assigner.labels, anchors, strict=True):
            mine = sample[sample[:, -1] == label]
            if len(mine):
                assigner.overlap(cells.reshape(-1, 7), mine[:, :7])


def _near_overlaps(
    assigner: AxisAlignedTargetAssigner, anchors: tuple[Tensor, ...], gt_boxes: Tensor
) -> None:
    """Compute the overlaps that an assignment needs."""
    grid = grid_of(anchors)
    if grid is not None:
        assigner.near(grid, assigner.list_boxes(gt_boxes))


def _iou_rows(rounds: int, device: torch.device) -> list[dict[str, Any]]:
    inputs = {name: (_boxes(0, side).to(device), _boxes(1, side).to(device)) for name, side in SIDES.items()}
    tasks = {name: (lambda pair=pair: boxes_iou_bev(*pair)) for name, pair in inputs.items()}
    for task in tasks.values():
        task()  # the first call may compile
    seconds = {name: Spread.of(values) for name, values in interleave(tasks, rounds, device).items()}
    return [
        {"variant": name, "seconds": own.median, "seconds_quartiles": [own.low, own.high], "rounds": rounds}
        for name, own in seconds.items()
    ]


def _boxes(seed: int, side: float) -> Tensor:
    """(200, 7) boxes of the size of a car, in a square of ``side`` metres."""
    draw = torch.Generator().manual_seed(seed)
    boxes = torch.rand(COUNT, 7, generator=draw) * torch.tensor([side, side, 1, 1, 1, 1, 6.28])
    return boxes + torch.tensor([0, 0, -1, 3.4, 1.2, 1.1, -3.14])
