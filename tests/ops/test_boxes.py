"""Box operators compared with reference results and plain geometry."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_freeze.errors import DataError
from pcdet_freeze.ops import boxes as B

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    ("key", "offset", "period"),
    [("off0_2pi", 0.0, 2 * math.pi), ("off05_pi", 0.5, math.pi), ("off078_2pi", 0.78, 2 * math.pi)],
)
def test_limit_period_equals_upstream(
    boxes_golden: dict[str, Any], key: str, offset: float, period: float
) -> None:
    x, want = np.array(boxes_golden["limit_period"]["x"]), np.array(boxes_golden["limit_period"][key])
    assert np.abs(B.limit_period(x, offset, period) - want).max() < 1e-6
    assert np.array_equal(
        B.limit_period(torch.from_numpy(x), offset, period).numpy(), B.limit_period(x, offset, period)
    )


def test_limit_period_keeps_scalars_and_dtypes() -> None:
    assert B.limit_period(math.pi, 0.5, 2 * math.pi) == pytest.approx(-math.pi)
    assert B.limit_period(np.float32([7.0])).dtype == np.float32


def test_rotation_is_counter_clockwise_and_keeps_other_columns() -> None:
    points = np.array([[[1.0, 0.0, 5.0, 0.3]]], dtype=np.float32)
    turned = B.rotate_points_along_z(points, np.array([math.pi / 2]))
    assert np.allclose(turned, [[[0, 1, 5, 0.3]]], atol=1e-6)
    assert turned.dtype == np.float32
    assert points[0, 0, 0] == 1.0


def test_rotation_takes_tensors_and_a_negative_stride() -> None:
    points = np.arange(24.0).reshape(2, 4, 3)[:, ::-1]
    angle = np.array([0.3, -1.0])
    want = B.rotate_points_along_z(torch.from_numpy(points.copy()), torch.from_numpy(angle))
    assert np.array_equal(B.rotate_points_along_z(points, angle), want.numpy())


def test_rotation_names_wrong_shapes() -> None:
    with pytest.raises(DataError, match=r"\(3, 3\) and \(3,\)"):
        B.rotate_points_along_z(np.zeros((3, 3)), np.zeros(3))


def test_corners_equal_upstream(boxes_golden: dict[str, Any], boxes: np.ndarray) -> None:
    want = np.array(boxes_golden["corners_first5"])
    assert np.abs(B.boxes_to_corners_3d(boxes[:5]) - want).max() < 1e-5
    assert B.boxes_to_corners_3d(torch.from_numpy(boxes)).dtype == torch.float32


def test_nearest_bev_boxes_equal_upstream(boxes_golden: dict[str, Any], boxes: np.ndarray) -> None:
    want = np.array(boxes_golden["nearest_bev_aligned"])
    assert np.abs(B.nearest_bev_boxes(boxes[: len(want)]) - want).max() < 1e-5


def test_nearest_bev_iou_equals_upstream(
    boxes_golden: dict[str, Any], boxes: np.ndarray, recipe: ModuleType
) -> None:
    tensor = torch.from_numpy(boxes)
    iou, want = B.boxes3d_nearest_bev_iou(tensor, tensor), boxes_golden["boxes3d_nearest_bev_iou"]
    got = recipe.summary(iou)
    assert got["shape"] == want["shape"]
    assert got["dtype"] == want["dtype"]
    assert got["sum"] == pytest.approx(want["sum"], abs=1e-3)
    assert np.abs(np.array(got["samples"]) - want["samples"]).max() < 1e-6


def test_nearest_bev_iou_of_numpy_equals_torch(boxes: np.ndarray) -> None:
    tensor = torch.from_numpy(boxes)
    got = B.boxes3d_nearest_bev_iou(boxes[:9], boxes)
    assert np.array_equal(got, B.boxes3d_nearest_bev_iou(tensor[:9], tensor).numpy())


@pytest.mark.parametrize(
    ("key", "options"),
    [("center", {"use_center": True}), ("corners1", {}), ("corners8", {"min_num_corners": 8})],
)
def test_range_masks_equal_upstream(voxel_golden: dict[str, Any], key: str, options: dict[str, Any]) -> None:
    golden = voxel_golden["mask_boxes"]
    boxes = np.array(golden["boxes"], dtype=np.float32)
    limit = [0, -39.68, -3, 69.12, 39.68, 1]
    assert B.mask_boxes_outside_range(boxes, limit, **options).tolist() == golden[key]


def test_range_mask_of_no_boxes_is_empty() -> None:
    assert B.mask_boxes_outside_range(np.zeros((0, 7)), [0, 0, 0, 1, 1, 1]).shape == (0,)


def test_points_in_boxes_counts_equal_upstream(
    boxes_golden: dict[str, Any], boxes: np.ndarray, recipe: ModuleType
) -> None:
    points = recipe.make_points(55, 4000, [0, -20, -2, 40, 20, 1], 0)
    mask = B.points_in_boxes_mask(points, boxes)
    assert mask.sum(axis=1).tolist() == boxes_golden["points_in_boxes_cpu"]["per_box"]
    first, want = B.points_in_boxes(points, boxes), boxes_golden["points_in_boxes_gpu_semantics"]
    assert (first == -1).sum() == want["background"]
    assert np.bincount(first[first >= 0], minlength=len(boxes)).tolist() == want["counts"]


def test_torch_arithmetic_finds_the_same_points(boxes: np.ndarray, recipe: ModuleType) -> None:
    points = recipe.make_points(55, 4000, [0, -20, -2, 40, 20, 1], 0)
    p, b = torch.from_numpy(points), torch.from_numpy(boxes)
    assert np.array_equal(B._first_box_torch(p, b, 1e-5).numpy(), B.points_in_boxes(points, boxes))
    inside = B._inside_torch(p.double(), b.double(), 1e-2).numpy()
    assert np.array_equal(inside, B.points_in_boxes_mask(p, b).numpy())


def test_points_in_boxes_chunks_make_no_difference(
    boxes: np.ndarray, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, b = torch.from_numpy(recipe.make_points(5, 1000, [0, -20, -2, 40, 20, 1], 0)), torch.from_numpy(boxes)
    whole = B._first_box_torch(p, b, 1e-5)
    monkeypatch.setattr(B, "_CHUNK", 17 * len(boxes))
    assert torch.equal(B._first_box_torch(p, b, 1e-5), whole)


def test_nan_is_in_nothing_and_holds_nothing() -> None:
    boxes = np.array([[np.nan, 0, 0, 2, 2, 2, 0], [0, 0, 0, 2, 2, 2, 0.0]])
    points = np.array([[0, 0, 0], [np.nan, 0, 0], [0, 0, np.nan]])
    assert B.points_in_boxes(points, boxes).tolist() == [1, -1, -1]
    first = B._first_box_torch(torch.from_numpy(points), torch.from_numpy(boxes), 1e-5)
    assert first.tolist() == [1, -1, -1]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
def test_empty_inputs_give_empty_answers(n: int, m: int) -> None:
    points, boxes = np.zeros((n, 3), np.float32), np.ones((m, 7), np.float32)
    assert B.points_in_boxes_mask(points, boxes).shape == (m, n)
    assert B.points_in_boxes(points, boxes).shape == (n,)
    assert B._first_box_torch(torch.from_numpy(points), torch.from_numpy(boxes), 0.0).shape == (n,)
    assert B.boxes3d_nearest_bev_iou(boxes, boxes[:2]).shape == (m, min(m, 2))
    assert B.boxes_to_corners_3d(boxes).shape == (m, 8, 3)


@pytest.mark.parametrize("bad", [np.zeros(7), np.zeros((2, 6)), np.zeros((1, 2, 7)), [[0.0] * 7]])
def test_a_wrong_box_shape_is_named(bad: Any) -> None:
    with pytest.raises(DataError, match="boxes must"):
        B.boxes_to_corners_3d(bad)


def test_numpy_and_torch_do_not_mix() -> None:
    with pytest.raises(DataError, match="both be numpy arrays or both torch tensors; got"):
        B.points_in_boxes(np.zeros((1, 3)), torch.zeros(1, 7))


@pytest.mark.cuda
@CUDA
def test_cuda_finds_the_same_points(boxes: np.ndarray, recipe: ModuleType) -> None:
    points = recipe.make_points(55, 4000, [0, -20, -2, 40, 20, 1], 0)
    p, b = torch.from_numpy(points).cuda(), torch.from_numpy(boxes).cuda()
    assert np.array_equal(B.points_in_boxes(p, b).cpu().numpy(), B.points_in_boxes(points, boxes))
    assert np.array_equal(B.points_in_boxes_mask(p, b).cpu().numpy(), B.points_in_boxes_mask(points, boxes))
