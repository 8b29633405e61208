"""gt_sampling: pasted objects, their places and their labels."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_freeze.datasets.augmentor.data_augmentor import DataAugmentor
from pcdet_freeze.datasets.augmentor.database_sampler import DatabaseSampler, free_places
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.ops.iou import boxes_iou_bev

LIMITS = np.array([-40, -40, -3, 40, 40, 1], np.float32)
CALIB = Calibration(np.eye(3, 4), np.eye(3), np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]], float))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Twelve cars in a row with overlapping neighbours, and three pedestrians; fifteen points each."""
    entries: dict[str, list[dict[str, Any]]] = {"Car": [], "Pedestrian": [], "Truck": []}
    for number in range(15):
        name = "Car" if number < 12 else "Pedestrian"
        box = np.array([5 + 2.5 * number, -10, -0.5, 4, 2, 1.5, 0], np.float32)
        path = f"gt_database/{number}.bin"
        (tmp_path / "gt_database").mkdir(exist_ok=True)
        np.full((15, 4), 0.1, np.float32).tofile(tmp_path / path)
        entries[name].append({"name": name, "path": path, "box3d_lidar": box, "difficulty": number % 3 - 1,
                              "num_points_in_gt": number + 1})  # fmt: skip
    (tmp_path / "db.pkl").write_bytes(pickle.dumps(entries))
    return tmp_path


def sampler(root: Path, **changes: Any) -> DatabaseSampler:
    cfg = {"NAME": "gt_sampling", "DB_INFO_PATH": ["db.pkl"], "SAMPLE_GROUPS": ["Car:8", "Pedestrian:2"],
           "NUM_POINT_FEATURES": 4, **changes}  # fmt: skip
    step = DataAugmentor([cfg], ["Car", "Pedestrian"], LIMITS, root_path=root).steps[0]
    assert isinstance(step, DatabaseSampler)
    return step


def scene() -> dict[str, Any]:
    points = np.random.RandomState(0).uniform([0, -14, -1, 0], [40, -6, 1, 1], (4000, 4)).astype(np.float32)
    return {
        "points": points,
        "point_labels": np.arange(4000) % 5,
        "gt_boxes": np.array([[10, -10, -0.5, 4, 2, 1.5, 0.2, 3, 4]], np.float32),
        "gt_names": np.array(["Car"]),
        "calib": CALIB,
    }


def rng() -> np.random.RandomState:
    return np.random.RandomState(3)


def test_pasted_boxes_overlap_nothing(database: Path) -> None:
    boxes = sampler(database)(scene(), rng())["gt_boxes"]
    overlap = boxes_iou_bev(boxes[:, :7], boxes[:, :7])
    np.fill_diagonal(overlap, 0)
    assert len(boxes) > 2
    assert overlap.max() == 0


def test_scene_boxes_stay_first_and_unchanged(database: Path) -> None:
    after = sampler(database)(scene(), rng())
    np.testing.assert_array_equal(after["gt_boxes"][0], scene()["gt_boxes"][0])
    assert after["gt_names"][0] == "Car"
    assert len(after["gt_names"]) == len(after["gt_boxes"])


def test_covered_points_go_and_take_their_labels_along(database: Path) -> None:
    before, after = scene(), sampler(database)(scene(), rng())
    pasted = after["gt_boxes"][1:, :7]
    kept = ~points_in_boxes_mask(before["points"], pasted).any(axis=0)
    rest = after["points"][15 * len(pasted) :]
    np.testing.assert_array_equal(rest, before["points"][kept])
    np.testing.assert_array_equal(after["point_labels"][15 * len(pasted) :], before["point_labels"][kept])


def test_pasted_points_stand_in_their_boxes_and_bring_labels(database: Path) -> None:
    after = sampler(database, POINT_LABELS={"Car": 3})(scene(), rng())
    names = after["gt_names"][1:]
    fresh = after["points"][: 15 * len(names)].reshape(-1, 15, 4)
    np.testing.assert_allclose(fresh[:, 0, :3], after["gt_boxes"][1:, :3] + 0.1, atol=1e-5)
    labels = after["point_labels"][: 15 * len(names)].reshape(-1, 15)
    assert [row[0] for row in labels] == [3 if name == "Car" else 255 for name in names]


def test_extra_width_clears_more_points(database: Path) -> None:
    wide = sampler(database, REMOVE_EXTRA_WIDTH=[2.0, 2.0, 0.0])(scene(), rng())
    assert len(wide["points"]) < len(sampler(database)(scene(), rng())["points"])


def test_the_limit_counts_objects_that_are_there(database: Path) -> None:
    step = sampler(database, SAMPLE_GROUPS=["Car:1"], LIMIT_WHOLE_SCENE=True)
    assert len(step(scene(), rng())["gt_boxes"]) == 1


def test_the_draw_depends_on_the_random_state_alone(database: Path) -> None:
    step = sampler(database)
    first = step(scene(), rng())
    step(scene(), np.random.RandomState(8))
    np.testing.assert_array_equal(step(scene(), rng())["points"], first["points"])


def test_objects_are_set_on_the_road_plane(database: Path) -> None:
    before = {**scene(), "road_plane": np.array([0.0, -1.0, 0.0, 1.7])}  # 1.7 m below the sensor
    boxes = sampler(database, USE_ROAD_PLANE=True)(before, rng())["gt_boxes"][1:]
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 5] / 2, -1.7, atol=1e-5)


def test_objects_keep_their_height_without_a_plane(database: Path) -> None:
    boxes = sampler(database, USE_ROAD_PLANE=True)(scene(), rng())["gt_boxes"][1:]
    np.testing.assert_array_equal(boxes[:, 2], np.float32(-0.5))


def test_the_filters_remove_what_they_name(database: Path) -> None:
    prepare = {"filter_by_min_points": ["Car:6"], "filter_by_difficulty": [-1]}
    cars = sampler(database, PREPARE=prepare).database["Car"]
    assert [info["num_points_in_gt"] for info in cars] == [6, 8, 9, 11, 12]


def test_the_log_reports_the_remaining_objects(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        sampler(database)
    assert "12 Car, 3 Pedestrian" in caplog.text


def test_free_places_keeps_the_first_of_two_that_collide() -> None:
    boxes = np.array([[0, 0, 0, 4, 2, 1, 0], [1, 0, 0, 4, 2, 1, 0], [9, 0, 0, 4, 2, 1, 0]], np.float32)
    assert free_places(boxes, boxes[:0]) == [0, 2]
    assert free_places(boxes, boxes[2:]) == [0]


@pytest.mark.parametrize("changes, message", [
    ({"PREPARE": {"filter_by_colour": ["red"]}}, "filter_by_colour"),
    ({"PREPARE": {"filter_by_min_points": ["Car"]}}, r"filter_by_min_points\[0\] must be NAME:NUMBER"),
    ({"SAMPLE_GROUPS": ["Car=3"]}, "SAMPLE_GROUPS"),
    ({"DATABASE_WITH_FAKELIDAR": True}, "DATABASE_WITH_FAKELIDAR is not implemented"),
    ({"USE_SHARED_MEMORY": True}, "USE_SHARED_MEMORY is not implemented"),
])  # fmt: skip
def test_settings_that_cannot_be_followed_are_errors(
    database: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler(database, **changes)


def test_keys_that_are_turned_off_are_accepted(database: Path) -> None:
    assert sampler(database, DATABASE_WITH_FAKELIDAR=False, USE_SHARED_MEMORY=False).groups["Car"] == 8


def test_a_missing_database_names_the_file_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"db\.pkl.*pcdet-freeze prepare kitti"):
        sampler(tmp_path)


def test_a_truncated_object_file_is_named(database: Path) -> None:
    for path in (database / "gt_database").iterdir():
        path.write_bytes(b"12345")
    with pytest.raises(DataError, match=r"gt_database.*truncated"):
        sampler(database)(scene(), rng())


def test_a_backup_database_replaces_a_missing_one(database: Path) -> None:
    wide = pickle.loads((database / "db.pkl").read_bytes())
    for infos in wide.values():
        for info in infos:
            np.full((15, 6), 0.1, np.float32).tofile(database / info["path"])
    (database / "backup.pkl").write_bytes(pickle.dumps(wide))
    backup = {"DB_INFO_PATH": "backup.pkl", "DB_DATA_PATH": "backup.npy", "NUM_POINT_FEATURES": 6}
    step = sampler(database, DB_INFO_PATH=["no.pkl"], DB_DATA_PATH=["no.npy"], BACKUP_DB_INFO=backup)
    assert step.features == 6
    assert step(scene(), rng())["points"].shape[1] == 4
    assert sampler(database, BACKUP_DB_INFO=backup).features == 4
