"""Augmentors transform labels with the points: after the inverse transform, all labels are unchanged."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcdet_freeze.datasets.augmentor.data_augmentor import DataAugmentor
from pcdet_freeze.datasets.augmentor.raster import mirror_numbers
from pcdet_freeze.datasets.augmentor.world import flip_world, rotate_world, scale_world, translate_world
from pcdet_freeze.datasets.registry import AUGMENTORS
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.evaluation.lanes import compare_cells

LIMITS = np.array([-20, -20, -3, 20, 20, 1], np.float32)
SEMANTIC = ("road", "car", "pole", "lane")
LINES = (6.0, 0.0, -5.0)  # y of lines 0, 1, 2, from left to right
AHEAD_BACK = st.floats(-1.0, 1.0)


def scene() -> dict[str, Any]:
    """2000 points with unique intensities; three lines along x that end before the border."""
    rng = np.random.RandomState(0)
    points = rng.uniform([-19, -19, -2, 0], [19, 19, 0, 0], (2000, 4)).astype(np.float32)
    points[:, 3] = np.arange(2000)
    lane_map = np.full((80, 80), 255, np.uint8)
    for number, y in enumerate(LINES):
        row = int((y + 20) / 0.5)
        lane_map[row : row + 2, 30:50] = number
        points[20 * number : 20 * number + 20, :2] = np.stack([np.linspace(-4, 4, 20), np.full(20, y)], 1)
    return {
        "points": points,
        "point_labels": np.concatenate([np.full(60, 3), rng.randint(0, 3, 1940)]),
        "lane_map": lane_map,
        "gt_boxes": np.array([[8, -15, -1, 4, 2, 1.5, 0]], np.float32),
        "gt_names": np.array(["Car"]),
    }


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cars side by side with ten points each."""
    root = tmp_path_factory.mktemp("database")
    np.full((10, 4), -1, np.float32).tofile(root / "car.bin")
    boxes = [np.array([x, 12, -1, 4, 2, 1.5, 0], np.float32) for x in range(-15, 15, 5)]
    cars = [{"name": "Car", "path": "car.bin", "box3d_lidar": b, "num_points_in_gt": 10} for b in boxes]
    (root / "db.pkl").write_bytes(pickle.dumps({"Car": cars}))
    return root


CONFIGS = {
    "gt_sampling": {"DB_INFO_PATH": ["db.pkl"], "SAMPLE_GROUPS": ["Car:4"], "NUM_POINT_FEATURES": 4},
    "random_world_flip": {"ALONG_AXIS_LIST": ["x", "y"]},
    "random_world_rotation": {"WORLD_ROT_ANGLE": [-3.14, 3.14]},
    "random_world_scaling": {"WORLD_SCALE_RANGE": [0.8, 1.25]},
    "random_world_translation": {"NOISE_TRANSLATE_STD": [2.0, 2.0, 0.5]},
}


def test_every_augmentor_is_tested_here() -> None:
    assert set(CONFIGS) == set(AUGMENTORS.names())


def augmented(database: Path, name: str, seed: int, **changes: Any) -> dict[str, Any]:
    cfg = {"NAME": name, **CONFIGS[name], **changes}
    step = DataAugmentor([cfg], ["Car"], LIMITS, root_path=database, semantic_class_names=SEMANTIC)
    return step(scene(), np.random.RandomState(seed))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CONFIGS)
def test_each_point_of_the_scene_keeps_its_label_and_its_place_on_the_lanes(
    database: Path, name: str, seed: int
) -> None:
    after, labels = augmented(database, name, seed), scene()["point_labels"]
    known = after["points"][:, 3].astype(int)
    old = known >= 0
    np.testing.assert_array_equal(after["point_labels"][old], labels[known[old]])
    on_lane = after["points"][after["point_labels"] == 3, :2]
    cells = np.floor((on_lane + 20) / 0.5).astype(int)
    near = [after["lane_map"][max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] for x, y in cells]
    assert len(near) == 60 and all((part != 255).any() for part in near)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_a_flip_forth_and_back_changes_nothing_at_all(axis: str) -> None:
    back = flip_world(flip_world(scene(), axis, LIMITS), axis, LIMITS)
    for key, value in scene().items():
        if key != "gt_boxes":
            np.testing.assert_array_equal(back[key], value)


def assert_the_same(back: dict[str, Any]) -> None:
    before = scene()
    np.testing.assert_allclose(back["points"], before["points"], atol=1e-4)
    np.testing.assert_array_equal(back["point_labels"], before["point_labels"])
    counts = compare_cells(before["lane_map"], back["lane_map"])
    assert counts["class_correct"] == counts["predicted"] > 0 and counts["class_found"] == counts["true"]


@given(angle=st.floats(-3.1415, 3.1415))
def test_a_turn_forth_and_back_keeps_every_label_and_every_line_to_a_cell(angle: float) -> None:
    assert_the_same(rotate_world(rotate_world(scene(), angle, LIMITS), -angle, LIMITS))


@given(factor=st.floats(0.8, 1.25))
def test_a_stretch_forth_and_back_keeps_every_label_and_every_line_to_a_cell(factor: float) -> None:
    assert_the_same(scale_world(scale_world(scene(), factor, LIMITS), 1 / factor, LIMITS))


@given(x=st.floats(-9, 9), y=st.floats(-9, 9))
def test_a_move_forth_and_back_keeps_every_label_and_every_line_to_a_cell(x: float, y: float) -> None:
    there = translate_world(scene(), np.array([x, y, 1.0]), LIMITS)
    assert_the_same(translate_world(there, -np.array([x, y, 1.0]), LIMITS))


def order(lane_map: np.ndarray) -> list[int]:
    """Numbers of the lines from left (large y) to right."""
    rows = {
        number: np.nonzero(lane_map == number)[0].mean() for number in np.unique(lane_map) if number < 255
    }
    return sorted(rows, key=lambda number: -rows[number])


@given(angle=AHEAD_BACK, half=st.booleans(), mirror=st.sampled_from(["", "x", "y", "xy"]))
def test_lines_stay_numbered_from_left_to_right(angle: float, half: bool, mirror: str) -> None:
    moved = rotate_world(scene(), angle / 2 + np.pi * half, LIMITS)
    for axis in mirror:
        moved = flip_world(moved, axis, LIMITS)
    assert order(moved["lane_map"]) == [0, 1, 2]


def test_numbers_are_reversed_among_those_that_occur_and_255_is_kept() -> None:
    lane_map = np.array([[1, 2, 255], [4, 2, 255]], np.uint8)
    assert mirror_numbers(lane_map).tolist() == [[4, 3, 255], [1, 3, 255]]
    np.testing.assert_array_equal(mirror_numbers(mirror_numbers(lane_map)), lane_map)
    none = np.full((2, 2), 255, np.uint8)
    np.testing.assert_array_equal(mirror_numbers(none), none)


@pytest.mark.parametrize(
    ("given_labels", "label"), [({}, 1), ({"Car": "pole"}, 2), ({"Car": 0}, 0), ({"Car": 255}, 255)]
)
def test_pasted_points_bring_the_label_of_their_class(
    database: Path, given_labels: dict[str, Any], label: int
) -> None:
    after = augmented(database, "gt_sampling", 0, POINT_LABELS=given_labels)
    pasted = after["points"][:, 3] < 0
    assert pasted.sum() == 40
    assert (after["point_labels"][pasted] == label).all()


def test_without_the_pasted_points_the_scene_is_unchanged_except_for_covered_points(database: Path) -> None:
    before, after = scene(), augmented(database, "gt_sampling", 0)
    left = after["points"][:, 3] >= 0
    kept = after["points"][left, 3].astype(int)
    np.testing.assert_array_equal(after["points"][left], before["points"][kept])
    np.testing.assert_array_equal(after["lane_map"], before["lane_map"])
    covered = before["points"][np.setdiff1d(np.arange(2000), kept), :2]
    x = after["gt_boxes"][1:, 0]
    assert len(covered) and all((abs(x - p[0]) < 2.1).any() and abs(p[1] - 12) < 1.1 for p in covered)


def test_a_scene_whose_boxes_are_not_known_gets_none_pasted(database: Path) -> None:
    step = AUGMENTORS.get("gt_sampling")
    cfg = {"NAME": "gt_sampling", **CONFIGS["gt_sampling"]}
    sampler = DataAugmentor([cfg], ["Car"], LIMITS, root_path=database).steps[0]
    assert isinstance(sampler, step)
    bare = {key: value for key, value in scene().items() if not key.startswith("gt_")}
    assert sampler(bare, np.random.RandomState(0)) is bare


@pytest.mark.parametrize("value", ["tree", 4, -1, 1.5])
def test_a_label_that_is_no_semantic_class_is_an_error(database: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"POINT_LABELS\.Car must be one of the semantic classes road, car"):
        augmented(database, "gt_sampling", 0, POINT_LABELS={"Car": value})
