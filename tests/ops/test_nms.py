"""NMS on all paths, compared with reference results and the plain greedy definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pcdet_freeze.errors import DataError
from pcdet_freeze.ops import nms as S
from pcdet_freeze.ops.iou import boxes_iou_bev

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
THRESHOLDS = [0.01, 0.1, 0.2, 0.5, 0.7]


def crowd(seed: int, n: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Typical detector output: clusters of near duplicates, isolated boxes, and a few very large ones."""
    draw = np.random.RandomState(seed)
    place = draw.uniform(0, 70, (n // 10, 2))[draw.randint(0, n // 10, n)] + draw.randn(n, 2) * 0.3
    size = np.array([3.9, 1.6, 1.6]) * np.exp(0.2 * draw.randn(n, 3))
    size[::97] *= 12
    rest = [draw.randn(n, 1), size, draw.uniform(-4, 4, (n, 1))]
    return np.concatenate([place, *rest], axis=1), draw.rand(n).round(2)


def plain_greedy(boxes: np.ndarray, scores: np.ndarray, thresh: float) -> list[int]:
    iou = boxes_iou_bev(boxes, boxes)
    kept: list[int] = []
    for n in np.argsort(-scores, kind="stable").tolist():
        if all(iou[n, m] <= thresh for m in kept):
            kept.append(n)
    return kept


@pytest.mark.parametrize("thresh", THRESHOLDS)
def test_nms_keeps_the_boxes_of_upstream(
    boxes_golden: dict[str, Any], boxes: np.ndarray, scores: np.ndarray, thresh: float
) -> None:
    want = boxes_golden[f"nms_gpu_{thresh}"]
    b, s = torch.from_numpy(boxes), torch.from_numpy(scores)
    assert S.nms(boxes, scores, thresh).tolist() == want
    assert S.nms(b, s, thresh).tolist() == want
    assert S.nms_torch(b, s, thresh).tolist() == want


@pytest.mark.parametrize("thresh", THRESHOLDS)
def test_nms_normal_keeps_the_boxes_of_upstream(
    boxes_golden: dict[str, Any], boxes: np.ndarray, scores: np.ndarray, thresh: float
) -> None:
    before = boxes.copy()
    assert S.nms_normal(boxes, scores, thresh).tolist() == boxes_golden[f"nms_normal_gpu_{thresh}"]
    assert np.array_equal(boxes, before)


def test_pre_maxsize_looks_at_the_best_scores_only(
    boxes_golden: dict[str, Any], boxes: np.ndarray, scores: np.ndarray
) -> None:
    want = boxes_golden["nms_gpu_0.2_pre100"]
    assert S.nms(boxes, scores, 0.2, 100).tolist() == want
    assert S.nms_torch(torch.from_numpy(boxes), torch.from_numpy(scores), 0.2, 100).tolist() == want
    assert S.nms(boxes, scores, 0.2, 0).tolist() == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("thresh", [0.0, 0.01, 0.3, 0.7, 1.0])
def test_nms_is_the_plain_greedy_choice(seed: int, thresh: float, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores = crowd(seed)
    want = plain_greedy(boxes, scores, thresh)
    assert S.nms(boxes, scores, thresh).tolist() == want
    monkeypatch.setattr(S, "_BLOCK", 64)
    assert S.nms_torch(torch.from_numpy(boxes), torch.from_numpy(scores), thresh).tolist() == want


def test_distant_boxes_and_a_giant_box_give_the_same_result() -> None:
    boxes, scores = crowd(5)
    boxes[:350, :2] += 1e6
    boxes[3, 3:5] = 3e6
    assert S.nms(boxes, scores, 0.0).tolist() == plain_greedy(boxes, scores, 0.0)


def test_equal_scores_keep_the_first_of_equal_boxes() -> None:
    boxes = np.tile(np.array([[1, 2, 0, 4, 2, 1, 0.3]], np.float32), (5, 1))
    for kept in (
        S.nms(boxes, np.ones(5), 0.5),
        S.nms_torch(torch.from_numpy(boxes), torch.ones(5), 0.5),
    ):
        assert kept.tolist() == [0]


def test_an_iou_at_the_threshold_is_kept() -> None:
    boxes = np.array([[0, 0, 0, 4, 1, 1, 0], [2, 0, 0, 4, 1, 1, 0.0]])  # IoU is 1/3
    assert len(S.nms(boxes, np.array([1.0, 0.5]), 0.34)) == 2
    assert len(S.nms(boxes, np.array([1.0, 0.5]), 0.33)) == 1


def test_boxes_that_touch_do_not_suppress_each_other_at_zero() -> None:
    boxes = np.array([[0, 0, 0, 4, 2, 1, 0.7], [0, 0, 0, 4, 2, 1, 0.7]])
    boxes[1, :2] = 4 * np.cos(0.7), 4 * np.sin(0.7)
    assert S.nms(boxes, np.ones(2), 0.0).tolist() == [0, 1]


def test_nan_boxes_suppress_no_box_and_nan_scores_rank_last() -> None:
    boxes = np.tile(np.array([[1, 2, 0, 4, 2, 1, 0.3]]), (4, 1))
    boxes[1, 0] = np.nan
    scores = np.array([np.nan, 0.9, 0.5, 0.7])
    for kept in (
        S.nms(boxes, scores, 0.5),
        S.nms_torch(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5),
    ):
        assert kept.tolist() == [1, 3]


def test_only_nan_boxes_are_all_kept() -> None:
    assert S.nms(np.full((3, 7), np.nan), np.ones(3), 0.1).tolist() == [0, 1, 2]


def test_no_boxes_keep_nothing() -> None:
    for kept in (
        S.nms(np.zeros((0, 7)), np.zeros(0), 0.1),
        S.nms_normal(torch.zeros(0, 7), torch.zeros(0), 0.1),
        S.nms_torch(torch.zeros(0, 7), torch.zeros(0), 0.1),
    ):
        assert kept.shape == (0,)
        assert str(kept.dtype).endswith("int64")


def test_strides_half_precision_and_gradients_make_no_difference(
    boxes: np.ndarray, scores: np.ndarray
) -> None:
    want = S.nms(boxes, scores, 0.2).tolist()
    wide = np.zeros((2 * len(boxes), 9), np.float32)
    wide[::2, :7] = boxes
    assert S.nms(wide[::2], np.repeat(scores, 2)[::2], 0.2).tolist() == want
    tensor = torch.from_numpy(boxes).requires_grad_()
    assert S.nms(tensor, torch.from_numpy(scores).requires_grad_(), 0.2).tolist() == want
    half = torch.from_numpy(scores).half()
    assert S.nms(tensor, half, 0.2).tolist() == S.nms(boxes, half.numpy(), 0.2).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 5)), np.zeros(3), 0.1), r"boxes must have shape \(N, 7\)"),
        ((np.zeros((3, 7)), np.zeros(2), 0.1), r"scores must have shape \(N,\).*got \(2,\) for 3 boxes"),
        ((np.zeros((3, 7)), np.zeros((3, 1)), 0.1), "scores must have shape"),
        ((np.zeros((3, 7)), torch.zeros(3), 0.1), "both be numpy arrays or both torch tensors; got"),
        ((np.zeros((3, 7)), np.zeros(3), np.nan), "thresh must be at least 0; got nan"),
        ((np.zeros((3, 7)), np.zeros(3), 0.1, -1), "pre_maxsize must be None or at least 0"),
    ],
)
def test_a_wrong_argument_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        S.nms(*arguments)


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("thresh", THRESHOLDS)
def test_cuda_keeps_the_same_boxes(boxes: np.ndarray, scores: np.ndarray, thresh: float) -> None:
    b, s = torch.from_numpy(boxes).cuda(), torch.from_numpy(scores).cuda()
    assert S.nms(b, s, thresh).tolist() == S.nms(boxes, scores, thresh).tolist()
    assert S.nms_normal(b, s, thresh).tolist() == S.nms_normal(boxes, scores, thresh).tolist()
    crowd_boxes, crowd_scores = crowd(1)
    on_gpu = S.nms(torch.from_numpy(crowd_boxes).cuda(), torch.from_numpy(crowd_scores).cuda(), thresh)
    assert on_gpu.tolist() == S.nms(crowd_boxes, crowd_scores, thresh).tolist()
