"""NMS of a batch without data-dependent lengths, compared with that of each sample."""

from __future__ import annotations

import pytest
import torch
from test_nms import crowd

from pcdet_freeze.ops.batch_nms import by_score, nms_batch
from pcdet_freeze.ops.nms import nms, nms_normal


def crowds(n: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two samples with equal scores among them, of which a fifth does not take part."""
    boxes, scores = (
        torch.stack(list(map(torch.from_numpy, part))) for part in zip(crowd(1, n), crowd(2, n), strict=True)
    )
    return boxes, scores, scores >= 0.2


@pytest.mark.parametrize("thresh", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("axis_aligned", [False, True])
def test_the_boxes_of_each_sample_are_those_of_nms(thresh: float, axis_aligned: bool) -> None:
    boxes, scores, counts = crowds()
    found = nms_batch(boxes, scores, counts, thresh, axis_aligned=axis_aligned)
    assert found.settled.all()
    for kept, own, score, used in zip(found.kept, boxes, scores, counts, strict=True):
        place = used.nonzero()[:, 0]
        expected = place[(nms_normal if axis_aligned else nms)(own[place], score[place], thresh)]
        assert by_score(kept, score).tolist() == expected.tolist()


@pytest.mark.parametrize("bound", [{"pairs": 1}, {"rounds": 1}])
def test_a_sample_for_which_a_bound_is_too_small_is_not_settled(bound: dict[str, int]) -> None:
    boxes, scores, counts = crowds()
    boxes[1, :, :2] += 100 * torch.arange(len(boxes[1])).unsqueeze(1)  # far from each other
    assert nms_batch(boxes, scores, counts, 0.1, **bound).settled.tolist() == [False, True]


def test_boxes_that_are_not_finite_are_kept_and_suppress_none() -> None:
    boxes = torch.ones(1, 3, 7).index_fill(1, torch.tensor([0]), torch.nan)
    found = nms_batch(boxes, torch.tensor([[3.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool), 0.5)
    assert found.kept.tolist() == [[True, True, False]]
    assert nms(boxes[0], torch.tensor([3.0, 2.0, 1.0]), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_sample_with_one_box_or_none(number: int) -> None:
    counts = torch.ones(2, number, dtype=torch.bool)
    found = nms_batch(torch.ones(2, number, 7), torch.ones(2, number), counts, 0.5)
    assert found.settled.all() and torch.equal(found.kept, counts)
