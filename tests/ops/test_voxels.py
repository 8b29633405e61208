"""The voxelizer equals spconv's generator bitwise, on both paths."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.ops.voxels import _DIRECT, Voxelizer

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PILLARS = ([0.16, 0.16, 4], [0, -39.68, -3, 69.12, 39.68, 1])
SECOND = ([0.05, 0.05, 0.1], [0, -40, -3, 70.4, 40, 1])
NAMES = ("voxels", "coords", "num_points")


def assert_same(a: Any, b: Any) -> None:
    for left, right in zip(a, b, strict=True):
        left, right = (x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in (left, right))
        assert left.dtype == right.dtype
        assert np.array_equal(left, right, equal_nan=True)


def cloud_on_borders(seed: int, size: list[float], bounds: list[float], n: int) -> np.ndarray:
    """Points on cell borders, or up to three float32 steps from them."""
    draw = np.random.RandomState(seed)
    low, cell = np.array(bounds[:3]), np.array(size)
    steps = np.round((np.array(bounds[3:]) - low) / cell).astype(int)
    xyz = (low + cell * np.stack([draw.randint(0, s + 1, n) for s in steps], 1)).astype(np.float32)
    beside = (xyz.view(np.int32) + draw.randint(-3, 4, xyz.shape).astype(np.int32)).view(np.float32)
    xyz = np.where(xyz == 0, xyz, beside)
    return np.concatenate([xyz, draw.rand(n, 1).astype(np.float32)], axis=1)


@pytest.mark.parametrize(
    "case", ["kitti_pointpillar", "kitti_pointpillar_capped", "kitti_second", "dense_overflow"]
)
def test_voxels_have_upstreams_digests(voxel_golden: dict[str, Any], recipe: ModuleType, case: str) -> None:
    want = voxel_golden[case]
    points = recipe.make_points(7, 20000, want["range"], 1)
    if "then" in want["points"]:
        points[:2000, :2] = np.float32(points[:2000, :2] * 0.02 + 10)
    voxelizer = Voxelizer(want["voxel_size"], want["range"], want["max_points"], want["max_voxels"], 4)
    assert voxelizer.grid_size.tolist() == want["grid_size"]
    got = voxelizer(points)
    for name, array in zip(NAMES, got, strict=True):
        assert hashlib.sha256(array.tobytes()).hexdigest() == want["sha256"][name], name
    assert_same(voxelizer(torch.from_numpy(points)), got)


def test_points_on_borders_fall_as_upstreams_do(voxel_golden: dict[str, Any]) -> None:
    border = voxel_golden["border"]
    points = np.array(border["points"], dtype=np.float32)
    for kind in (np.asarray, torch.from_numpy):
        voxels, coords, num_points = Voxelizer(*PILLARS, 32, 16000, 4)(kind(points))
        assert coords.tolist() == border["coords"]
        assert num_points.tolist() == border["num_points"]
        assert voxels[:, 0].tolist() == border["voxels_first_point"]


@pytest.mark.parametrize("grid", [PILLARS, SECOND, ([0.32, 0.32, 6], [-74.88, -74.88, -2, 74.88, 74.88, 4])])
@pytest.mark.parametrize(("max_points", "max_voxels"), [(1, 20000), (3, 700)])
def test_voxels_equal_spconvs_on_cell_borders(grid: Any, max_points: int, max_voxels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spconv_utils = pytest.importorskip("spconv.pytorch.utils", reason="spconv is not installed")
    points = cloud_on_borders(3, *grid, n=20000)
    generator = spconv_utils.PointToVoxel(*grid, 4, max_voxels, max_points)
    want = generator(torch.from_numpy(points))
    voxelizer = Voxelizer(*grid, max_points, max_voxels, 4)
    assert_same(voxelizer(points), want)
    assert_same(voxelizer(torch.from_numpy(points)), want)


def test_voxels_of_a_real_frame_equal_spconvs(real_data: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spconv_utils = pytest.importorskip("spconv.pytorch.utils", reason="spconv is not installed")
    frame = sorted(real_data.glob("kitti/**/velodyne/*.bin"))[0]
    points = np.fromfile(frame, dtype=np.float32).reshape(-1, 4)
    want = spconv_utils.PointToVoxel(*PILLARS, 4, 16000, 32)(torch.from_numpy(points))
    assert_same(Voxelizer(*PILLARS, 32, 16000, 4)(points), want)
    assert_same(Voxelizer(*PILLARS, 32, 16000, 4)(torch.from_numpy(points)), want)


def test_after_the_cap_points_of_open_voxels_are_still_added() -> None:
    x = np.array([0.5, 1.5, 2.5, 0.6, 1.6, 0.7], dtype=np.float32)
    points = np.stack([x, x * 0, x * 0, np.arange(6)], axis=1).astype(np.float32)
    for kind in (np.asarray, torch.from_numpy):
        voxels, coords, num_points = Voxelizer([1, 1, 1], [0, 0, 0, 4, 1, 1], 2, 2, 4)(kind(points))
        assert voxels[:, :, 3].tolist() == [[0, 3], [1, 4]]
        assert coords.tolist() == [[0, 0, 0], [0, 0, 1]]
        assert num_points.tolist() == [2, 2]


def test_hash_table_and_full_grid_give_the_same_voxels() -> None:
    points = cloud_on_borders(1, *SECOND, n=3000)
    flat, tall = (Voxelizer([0.2, 0.2, 4], [0, -40, -3, 70.4, top, 1], 5, 9000, 4) for top in (40, 400))
    assert flat.grid_size.prod() < _DIRECT < tall.grid_size.prod()
    inside = points[points[:, 1] < 39.9]
    assert_same(flat(inside), tall(inside))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_coordinates_that_are_not_finite_are_left_out(kind: Any) -> None:
    points = np.full((5, 4), 0.5, dtype=np.float32)
    points[0, 0], points[1, 1], points[2, 2], points[3, 3] = np.nan, np.inf, -np.inf, np.nan
    _, coords, num_points = Voxelizer([1, 1, 1], [0, 0, 0, 4, 4, 1], 5, 5, 4)(kind(points))
    assert coords.tolist() == [[0, 0, 0]]
    assert num_points.tolist() == [2]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_no_point_in_range_makes_no_voxel(kind: Any, offset: float) -> None:
    points = np.full((0 if offset == 0 else 3, 4), offset, dtype=np.float32)
    voxels, coords, num_points = Voxelizer(*PILLARS, 32, 100, 4)(kind(points))
    assert (voxels.shape, coords.shape, num_points.shape) == ((0, 32, 4), (0, 3), (0,))


def test_strides_and_float64_make_no_difference() -> None:
    points = cloud_on_borders(2, *PILLARS, n=500)
    wide = np.zeros((500, 9))
    wide[:, 2:6] = points
    voxelizer = Voxelizer(*PILLARS, 4, 300, 4)
    assert_same(voxelizer(wide[:, 2:6]), voxelizer(points))
    assert_same(voxelizer(torch.from_numpy(wide)[:, 2:6]), voxelizer(points))


def test_a_wrong_number_of_columns_is_named() -> None:
    with pytest.raises(DataError, match=r"\(N, 4\).*got \(3, 5\)"):
        Voxelizer(*PILLARS, 4, 300, 4)(np.zeros((3, 5), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"voxel_size": [0.1, 0.1]}, "voxel_size must be 3"),
        ({"voxel_size": [0.1, 0, 1]}, "voxel_size must be positive"),
        ({"voxel_size": "abc"}, "voxel_size must be 3 numbers"),
        ({"point_cloud_range": [0, 0, 0, -1, 1, 1]}, "must span at least one voxel"),
        ({"max_points": 0}, "max_points must be an integer of at least 1"),
        ({"max_voxels": 2.5}, "max_voxels must be an integer"),
        ({"num_point_features": 2}, "num_point_features must be .* at least 3"),
    ],
)
def test_a_setting_that_makes_no_grid_is_named(options: dict[str, Any], message: str) -> None:
    good = {
        "voxel_size": PILLARS[0],
        "point_cloud_range": PILLARS[1],
        "max_points": 4,
        "max_voxels": 9,
        "num_point_features": 4,
    }
    with pytest.raises(ConfigError, match=message):
        Voxelizer(**{**good, **options})


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("grid", [PILLARS, SECOND])
@pytest.mark.parametrize(("max_points", "max_voxels"), [(1, 20000), (3, 700)])
def test_cuda_makes_the_same_voxels(grid: Any, max_points: int, max_voxels: int) -> None:
    points = cloud_on_borders(3, *grid, n=20000)
    voxelizer = Voxelizer(*grid, max_points, max_voxels, 4)
    assert_same(voxelizer(torch.from_numpy(points).cuda()), voxelizer(points))
