"""Flip, rotation, scaling, translation: OpenPCDet's draws; labels and lanes move with the points.

Compared: all augmentations of voxel_aug.json, which has none of the translation.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcdet_freeze.datasets.augmentor.data_augmentor import DataAugmentor, wrap_heading
from pcdet_freeze.datasets.augmentor.raster import flip_raster, resample_raster
from pcdet_freeze.datasets.augmentor.world import flip_world, rotate_world, scale_world, translate_world
from pcdet_freeze.datasets.registry import AUGMENTORS
from pcdet_freeze.errors import ConfigError

LIMITS = np.array([-20, -20, -3, 20, 20, 1], np.float32)
GOLDEN = {
    "flip_x": {"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["x"]},
    "flip_y": {"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["y"]},
    "rot": {"NAME": "random_world_rotation", "WORLD_ROT_ANGLE": [-0.78539816, 0.78539816]},
    "scale": {"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": [0.95, 1.05]},
}


def recipe(reference: Path) -> Any:
    spec = importlib.util.spec_from_file_location("golden_recipe", reference / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def augmentor(cfg: dict[str, Any]) -> Any:
    return DataAugmentor([cfg], ["Car"], LIMITS).steps[0]


def sample(lanes: bool = False) -> dict[str, Any]:
    boxes = np.array([[10, 2, -1, 4, 2, 1.5, 0.3, 1, -2]], np.float32)
    points = np.array([[10, 2, -1, 0.5], [3, -7, 0, 0.1]], np.float32)
    labels = {"point_labels": np.array([1, 2]), "gt_names": np.array(["Car"])}
    return {"points": points, "gt_boxes": boxes, **labels, **({"lane_map": lane_map()} if lanes else {})}


def lane_map() -> np.ndarray:
    lanes = np.full((40, 40), 255, np.uint8)
    lanes[22, 30] = 7  # the cell of x 10..11, y 2..3
    return lanes


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", GOLDEN)
def test_world_augmentors_draw_and_move_as_openpcdet(reference: Path, kind: str, seed: int) -> None:
    golden = json.loads((reference / "voxel_aug.json").read_text())["aug"]
    wanted = golden["results"][f"{kind}_seed{seed}"]
    points = recipe(reference).make_points(9, 500, [0, -40, -3, 70, 40, 1], 1)
    before = {"points": points, "gt_boxes": np.array(golden["gt_boxes"], np.float32)}
    after = augmentor(GOLDEN[kind])(before, np.random.RandomState(seed))
    np.testing.assert_allclose(after["gt_boxes"], wanted["gt"], rtol=0, atol=1e-5)
    found = recipe(reference).summary(after["points"])
    np.testing.assert_allclose(found["samples"], wanted["points"]["samples"], rtol=0, atol=1e-5)
    assert found["abs_sum"] == pytest.approx(wanted["points"]["abs_sum"], rel=1e-6)
    assert after["points"].dtype == after["gt_boxes"].dtype == np.float32


def test_the_sample_given_is_not_changed() -> None:
    before, copy = sample(lanes=True), sample(lanes=True)
    for moved in (
        flip_world(before, "x", LIMITS),
        rotate_world(before, 0.4, LIMITS),
        scale_world(before, 2, LIMITS),
    ):
        assert moved is not before
    for key, value in copy.items():
        np.testing.assert_array_equal(before[key], value)


def test_velocities_turn_with_the_scene() -> None:
    moved = rotate_world(sample(), np.pi / 2, LIMITS)
    np.testing.assert_allclose(moved["gt_boxes"][0, [0, 1, 7, 8]], [-2, 10, 2, 1], atol=1e-5)
    assert flip_world(sample(), "y", LIMITS)["gt_boxes"][0, 7] == -1
    assert scale_world(sample(), 2.0, LIMITS)["gt_boxes"][0, 8] == -4


@pytest.mark.parametrize("axis, cell", [("x", (17, 30)), ("y", (22, 9))])
def test_a_flip_moves_the_lane_map_exactly(axis: str, cell: tuple[int, int]) -> None:
    lanes = flip_world(sample(lanes=True), axis, LIMITS)["lane_map"]
    assert lanes[cell] == 7
    assert (lanes == 7).sum() == 1
    np.testing.assert_array_equal(flip_raster(flip_raster(lanes, axis, LIMITS), axis, LIMITS), lanes)


def test_a_quarter_turn_moves_each_lane_cell_to_its_place() -> None:
    lanes = np.arange(1600).reshape(40, 40) % 200
    turned = rotate_world({"lane_map": lanes.astype(np.uint8)}, np.pi / 2, LIMITS)["lane_map"]
    np.testing.assert_array_equal(turned, np.rot90(lanes, -1))  # rows are y upwards: counter-clockwise


def test_lane_cells_from_outside_the_range_are_unknown() -> None:
    lanes = scale_world({"lane_map": np.zeros((40, 40), np.uint8)}, 0.5, LIMITS)["lane_map"]
    assert (lanes[10:30, 10:30] == 0).all()
    assert (lanes == 255).sum() == 1600 - 400


def test_a_flip_over_a_one_sided_range_leaves_nothing_known() -> None:
    ahead = np.array([0, -20, -3, 40, 20, 1], np.float32)
    assert (flip_raster(np.zeros((4, 4), np.uint8), "y", ahead) == 255).all()


@given(angle=st.floats(-3.1, 3.1), row=st.integers(6, 33), col=st.integers(6, 33))
def test_points_and_lane_map_turn_alike(angle: float, row: int, col: int) -> None:
    centre = np.array([[col - 19.5, row - 19.5, 0, 0]], np.float32)
    lanes = np.full((40, 40), 255, np.uint8)
    lanes[row - 1 : row + 2, col - 1 : col + 2] = 1
    moved = rotate_world({"points": centre, "lane_map": lanes}, angle, LIMITS)
    x, y = np.floor(moved["points"][0, :2] + 20).astype(int)
    assert moved["lane_map"][y, x] == 1


def test_resampling_with_the_identity_changes_nothing() -> None:
    np.testing.assert_array_equal(resample_raster(lane_map(), LIMITS, np.eye(2)), lane_map())


@given(st.floats(-50, 50))
def test_headings_end_between_minus_pi_and_pi(angle: float) -> None:
    wrapped = wrap_heading(np.array([angle]))[0]
    assert -np.pi - 1e-9 <= wrapped < np.pi + 1e-9
    assert np.cos(wrapped - angle) == pytest.approx(1)


def test_a_translation_moves_points_and_boxes_by_normal_draws_of_x_then_y_then_z() -> None:
    cfg = {"NAME": "random_world_translation", "NOISE_TRANSLATE_STD": [0.5, 0.2, 0.0]}
    draws, before = np.random.RandomState(4), sample()
    shift = [draws.normal(0, 0.5), draws.normal(0, 0.2), 0]
    after = augmentor(cfg)(before, np.random.RandomState(4))
    np.testing.assert_allclose(after["points"][:, :3], before["points"][:, :3] + shift, atol=1e-6)
    np.testing.assert_allclose(after["gt_boxes"][:, :3], before["gt_boxes"][:, :3] + shift, atol=1e-6)
    np.testing.assert_array_equal(after["gt_boxes"][:, 3:], before["gt_boxes"][:, 3:])
    assert after["points"].dtype == after["gt_boxes"].dtype == np.float32


def test_a_translation_moves_the_lane_map_with_the_points() -> None:
    lanes = translate_world(sample(lanes=True), np.array([3.0, -2.0, 1.0]), LIMITS)["lane_map"]
    assert lanes[20, 33] == 7
    assert (lanes == 7).sum() == 1 and (lanes[:, :3] == 255).all()


def test_a_narrow_scale_range_draws_nothing() -> None:
    rng = np.random.RandomState(0)
    augmentor({"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": [1.0, 1.0005]})(sample(), rng)
    assert rng.uniform() == np.random.RandomState(0).uniform()


def test_disabled_augmentors_are_not_built() -> None:
    configs = {
        "DISABLE_AUG_LIST": ["placeholder", "random_world_flip"],
        "AUG_CONFIG_LIST": list(GOLDEN.values()),
    }
    names = [type(step).__name__ for step in DataAugmentor(configs, ["Car"], LIMITS).steps]
    assert names == ["RandomWorldRotation", "RandomWorldScaling"]


def test_an_unknown_disabled_name_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"DISABLE_AUG_LIST\[0\] must be one of .*did you mean random_world_flip\?"
    ):
        DataAugmentor({"DISABLE_AUG_LIST": ["random_wrld_flip"], "AUG_CONFIG_LIST": []}, ["Car"], LIMITS)


def test_an_unknown_augmentor_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="random_world_flip") as error:
        augmentor({"NAME": "random_world_flp"})
    assert all(name in str(error.value) for name in AUGMENTORS.names())


def test_an_augmentor_of_openpcdet_that_is_not_implemented_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"random_local_rotation.*not implemented"):
        augmentor({"NAME": "random_local_rotation", "LOCAL_ROT_ANGLE": [-0.1, 0.1]})


@pytest.mark.parametrize("cfg, message", [
    ({"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["z"]}, r"LIST\[0\] must be 'x' or 'y'; got 'z'"),
    ({"NAME": "random_world_flip"}, "ALONG_AXIS_LIST"),
    ({"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["x"], "PROB": 1}, "PROB is not a key"),
    ({"NAME": "random_world_rotation", "WORLD_ROT_ANGLE": [1, -1]}, "low <= high"),
    ({"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": "wide"}, "low, high"),
    ({"NAME": "random_world_translation", "NOISE_TRANSLATE_STD": 0.5}, r"\[x, y, z\].*; got float 0.5"),
    ({"NAME": "random_world_translation", "NOISE_TRANSLATE_STD": [1, 1, -1]}, r"STD\[2\] must be .*; got -1"),
])  # fmt: skip
def test_settings_without_sense_are_errors(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        augmentor(cfg)
