"""Rotated IoU: exact for simple geometry, equal for numba and torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_freeze.errors import DataError
from pcdet_freeze.ops import _rotated_overlap_torch as T
from pcdet_freeze.ops import iou as I

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def box(x: float, y: float, dx: float, dy: float, angle: float = 0.0) -> np.ndarray:
    return np.array([[x, y, dx, dy, angle]], dtype=np.float64)


def area(a: np.ndarray, b: np.ndarray) -> float:
    """The intersection area, after checking that all four implementations agree."""
    got = float(I.rotated_intersection(a, b)[0, 0])
    pair = [T.prepare_torch(torch.from_numpy(np.asarray(r, dtype=np.float64))) for r in (a, b)]
    assert float(T.overlap_matrix_torch(*pair)) == pytest.approx(got, rel=1e-12, abs=0)
    assert float(T.pair_overlap_torch(*pair)) == pytest.approx(got, rel=1e-12, abs=0)
    assert float(I.rotated_intersection(b, a)[0, 0]) == pytest.approx(got, rel=1e-12, abs=0)
    return got


def clipped_area(a: np.ndarray, b: np.ndarray) -> float:
    """Independent: clip a by the half-planes of b (Sutherland and Hodgman, CACM 1974)."""

    def corners(r: np.ndarray) -> list[complex]:
        turn = complex(math.cos(r[4]), math.sin(r[4]))
        signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
        return [complex(*r[:2]) + turn * complex(s * r[2] / 2, t * r[3] / 2) for s, t in signs]

    shape, fence = corners(a[0]), corners(b[0])
    for p, q in zip(fence, fence[1:] + fence[:1], strict=True):
        sides = [((q - p).conjugate() * (v - p)).imag for v in shape]
        cut: list[complex] = []
        for k in range(len(shape)):
            v, w, s, t = shape[k - 1], shape[k], sides[k - 1], sides[k]
            if (s < 0) != (t < 0):
                cut.append(v + (w - v) * (s / (s - t)))
            if t >= 0:
                cut.append(w)
        shape = cut
    return sum((shape[k - 1].conjugate() * shape[k]).imag for k in range(len(shape))) / 2


def test_bev_iou_equals_the_exact_polygon_area(boxes_golden: dict[str, Any], boxes: np.ndarray) -> None:
    pairs = np.array(boxes_golden["iou_bev_nonzero_upper"])
    n, m = pairs[:, 0].astype(int), pairs[:, 1].astype(int)
    iou = I.boxes_iou_bev(boxes, boxes)
    assert np.abs(iou[n, m] - pairs[:, 4]).max() < 1e-6
    assert np.abs(iou[n, m] - pairs[:, 2]).max() < 9e-4
    rest = np.triu(iou)
    rest[n, m] = 0
    assert not rest.any()


def test_iou3d_equals_upstream(boxes_golden: dict[str, Any], boxes: np.ndarray) -> None:
    pairs = np.array(boxes_golden["iou_bev_nonzero_upper"])
    n, m = pairs[:, 0].astype(int), pairs[:, 1].astype(int)
    assert np.abs(I.boxes_iou3d(boxes, boxes)[n, m] - pairs[:, 3]).max() < 9e-4


def test_aligned_iou3d_equals_upstream_and_the_diagonal(
    boxes_golden: dict[str, Any], boxes: np.ndarray
) -> None:
    a, b = boxes[:60], boxes[100:160]
    aligned = I.boxes_aligned_iou3d(a, b)
    assert np.abs(aligned - boxes_golden["iou3d_aligned_first60_vs_100_160"]).max() < 9e-4
    assert np.array_equal(aligned, np.diag(I.boxes_iou3d(a, b)))


def test_torch_arithmetic_is_numbas_to_the_last_bit(boxes: np.ndarray) -> None:
    flat = boxes.astype(np.float64)[:, I.BEV_COLUMNS]
    rows = T.prepare_torch(torch.from_numpy(flat))
    got = T.overlap_matrix_torch(rows, rows).numpy()
    assert np.abs(got - I.rotated_intersection(flat, flat)).max() < 1e-13


def test_blocks_make_no_difference(boxes: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = T.prepare_torch(torch.from_numpy(boxes.astype(np.float64)[:, I.BEV_COLUMNS]))
    whole = T.overlap_matrix_torch(rows, rows)
    monkeypatch.setattr(T, "_CHUNK", 7 * len(boxes))
    assert torch.equal(T.overlap_matrix_torch(rows, rows), whole)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2, -2.0, math.pi, 1e-12])
@pytest.mark.parametrize("size", [(4.0, 2.0), (1e-4, 3e-4), (1e5, 2e4), (50.0, 1e-3)])
def test_a_box_shares_itself_with_itself(angle: float, size: tuple[float, float]) -> None:
    one = box(12.3, -45.6, *size, angle)
    assert area(one, one) == pytest.approx(size[0] * size[1], rel=1e-12)
    assert area(one, box(12.3, -45.6, *size, angle + math.pi)) == pytest.approx(size[0] * size[1], rel=1e-8)
    assert area(one, box(12.3, -45.6, *size[::-1], angle + math.pi / 2)) == pytest.approx(
        size[0] * size[1], rel=1e-8
    )


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2, -2.0])
def test_boxes_that_share_three_sides_share_the_smaller_area(angle: float) -> None:
    c, s = math.cos(angle), math.sin(angle)
    whole, left, right = (box(3 + d * c, 7 + d * s, w, 2, angle) for d, w in ((0, 4), (-1, 2), (0.5, 3)))
    assert area(whole, left) == pytest.approx(4, rel=1e-12)
    assert area(whole, right) == pytest.approx(6, rel=1e-12)
    assert area(left, right) == pytest.approx(2, rel=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2, -2.0])
@pytest.mark.parametrize("offset", [(4, 0), (0, 2), (4, 1), (4, 2), (-4, -2), (3, 2)])
def test_boxes_that_touch_share_exactly_nothing(angle: float, offset: tuple[float, float]) -> None:
    turn = complex(math.cos(angle), math.sin(angle))
    there = complex(30, 20) + turn * complex(*offset)
    assert area(box(30, 20, 4, 2, angle), box(there.real, there.imag, 4, 2, angle)) == 0


@pytest.mark.parametrize("inner", [0.0, 0.5, math.pi / 2, 3.0])
def test_the_intersection_with_a_nested_box_is_its_area(inner: float) -> None:
    assert area(box(1, 1, 10, 10, 0.2), box(1.5, 0.5, 3, 1, inner)) == pytest.approx(3, rel=1e-12)
    assert area(box(0, 0, 1e6, 1e6, 0.2), box(1.5, 0.5, 1e-3, 1e-3, inner)) == pytest.approx(1e-6, rel=1e-9)


def test_a_cross_shares_its_centre() -> None:
    assert area(box(0, 0, 10, 1), box(0, 0, 10, 1, math.pi / 2)) == pytest.approx(1, rel=1e-12)
    octagon = 8 * (math.sqrt(2) - 1)
    assert area(box(0, 0, 2, 2), box(0, 0, 2, 2, math.pi / 4)) == pytest.approx(octagon, rel=1e-12)


BROKEN = [
    [0, 0, 0, 0, 1, 1, 0],
    [0, 0, 0, 1, -1, 1, 0],
    [np.nan, 0, 0, 1, 1, 1, 0],
    [0, 0, 0, 1, 1, 1, np.nan],
    [0, 0, 0, np.inf, 1, 1, 0],
    [0, np.inf, 0, 1, 1, 1, 0],
    [0, 0, 0, 1e200, 1e200, 1, 0],
]


@pytest.mark.parametrize("values", BROKEN)
@pytest.mark.parametrize("function", [I.boxes_iou_bev, I.boxes_iou3d, I.boxes_aligned_iou3d])
def test_a_box_that_is_no_box_has_iou_zero(values: list[float], function: Any) -> None:
    good, bad = np.array([[0, 0, 0, 1, 1, 1, 0.0]]), np.array([values], dtype=np.float64)
    assert function(good, bad).tolist() in ([[0]], [0])
    assert function(bad, bad).tolist() in ([[0]], [0])
    assert area(good[:, I.BEV_COLUMNS], bad[:, I.BEV_COLUMNS]) == 0


def test_a_height_that_is_no_number_has_iou3d_zero() -> None:
    good, bad = np.array([[0, 0, 0, 1, 1, 1, 0.0]]), np.array([[0, 0, np.nan, 1, 1, 1, 0.0]])
    flat = np.array([[0, 0, 0, 1, 1, 0, 0.0]])
    assert I.boxes_iou3d(good, bad) == I.boxes_iou3d(bad, bad) == I.boxes_iou3d(flat, flat) == 0


def test_heights_that_do_not_meet_share_nothing() -> None:
    low, high = np.array([[0, 0, 0, 2, 2, 2, 0.0]]), np.array([[0, 0, 2, 2, 2, 2, 0.0]])
    assert I.boxes_iou3d(low, high) == 0
    assert I.boxes_iou3d(low, high - [[0, 0, 1, 0, 0, 0, 0]]) == pytest.approx(1 / 3)


rectangle = st.tuples(
    st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 5), st.floats(0.01, 5), st.floats(-7, 7)
).map(lambda r: np.array([r]))


@settings(max_examples=200)
@given(rectangle, rectangle)
def test_the_area_is_that_of_the_clipped_polygon(a: np.ndarray, b: np.ndarray) -> None:
    assert float(I.rotated_intersection(a, b)[0, 0]) == pytest.approx(clipped_area(a, b), abs=1e-8)


@settings(max_examples=100)
@given(rectangle, rectangle, st.floats(-4, 4), st.floats(-100, 100))
def test_moving_both_boxes_moves_no_area(a: np.ndarray, b: np.ndarray, turn: float, shift: float) -> None:
    def moved(r: np.ndarray) -> np.ndarray:
        place = complex(r[0, 0], r[0, 1]) * complex(math.cos(turn), math.sin(turn)) + shift
        return box(place.real, place.imag, r[0, 2], r[0, 3], r[0, 4] + turn)

    here, there = I.rotated_intersection(a, b), I.rotated_intersection(moved(a), moved(b))
    assert float(there[0, 0]) == pytest.approx(float(here[0, 0]), abs=1e-8)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty_inputs_give_empty_answers(n: int, m: int) -> None:
    a, b = np.ones((n, 7), np.float32), np.ones((m, 7), np.float32)
    for function in (I.boxes_iou_bev, I.boxes_iou3d):
        assert function(a, b).shape == (n, m)
        assert function(torch.from_numpy(a), torch.from_numpy(b)).shape == (n, m)
    assert I.boxes_aligned_iou3d(a[:0], b[:0]).shape == (0,)
    rows = [T.prepare_torch(torch.ones(k, 5, dtype=torch.float64)) for k in (n, m)]
    assert T.overlap_matrix_torch(*rows).shape == (n, m)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_the_answer_has_the_kind_and_dtype_that_came_in(boxes: np.ndarray, dtype: Any) -> None:
    some = np.ceil(boxes[:20]).astype(dtype)
    want = np.float64 if dtype is np.int64 else dtype
    got = I.boxes_iou_bev(some, some)
    tensor = I.boxes_iou_bev(torch.from_numpy(some), torch.from_numpy(some))
    assert got.dtype == want
    assert isinstance(tensor, torch.Tensor)
    assert tensor.numpy().dtype == want
    assert np.array_equal(got, tensor.numpy())


def test_strides_read_only_arrays_and_gradients_make_no_difference(boxes: np.ndarray) -> None:
    want = I.boxes_iou_bev(boxes, boxes)
    wide = np.zeros((2 * len(boxes), 9), np.float32)
    wide[::2, 1:8] = boxes
    wide.flags.writeable = False
    assert np.array_equal(I.boxes_iou_bev(wide[::2, 1:8], wide[::2, 1:]), want)
    tensor = torch.from_numpy(boxes).requires_grad_()
    assert np.array_equal(I.boxes_iou_bev(tensor, tensor).numpy(), want)


def test_wrong_shapes_are_named() -> None:
    good = np.zeros((2, 7))
    with pytest.raises(DataError, match=r"boxes_b must have shape \(N, 7\).*got \(2, 5\)"):
        I.boxes_iou_bev(good, np.zeros((2, 5)))
    with pytest.raises(DataError, match="got 2 and 1"):
        I.boxes_aligned_iou3d(good, good[:1])
    with pytest.raises(DataError, match="both be numpy arrays or both torch tensors; got"):
        I.boxes_iou3d(good, torch.zeros(2, 7))


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("function", [I.boxes_iou_bev, I.boxes_iou3d, I.boxes_aligned_iou3d])
def test_cuda_gives_the_same_iou(boxes: np.ndarray, function: Any) -> None:
    a, b = boxes.astype(np.float64), boxes[::-1].astype(np.float64)
    got = function(torch.from_numpy(a).cuda(), torch.from_numpy(b).cuda())
    assert np.abs(got.cpu().numpy() - function(a, b)).max() < 1e-12
