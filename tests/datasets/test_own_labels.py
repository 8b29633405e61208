"""Custom semantic and lane labels of KITTI frames: reading and validation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict

from pcdet_freeze.datasets.kitti import KittiDataset
from pcdet_freeze.errors import ConfigError, DataError

Kitti = Callable[..., KittiDataset]
CLASSES = ["road", "car", "person"]


@pytest.fixture
def labelled(kitti_cfg: EasyDict) -> EasyDict:
    """The tiny KITTI with labels: frame 0 has both, frame 1 only points, frame 2 only lanes."""
    kitti_cfg.update(
        GET_ITEM_LIST=["points", "point_labels", "lane_map"],
        SEMANTIC={"CLASSES": CLASSES},
        LANE={"CELL_SIZE": 0.64},
        POINT_CLOUD_RANGE=[0, -32, -3, 64, 32, 1],
        FOV_POINTS_ONLY=False,
    )
    folder = Path(kitti_cfg.DATA_PATH) / "training"
    for name in ("semantic", "lanes"):
        (folder / name).mkdir()
    np.save(folder / "semantic" / "000000.npy", np.arange(410) % 3)
    (np.arange(410, dtype="<u4") % 3 + (7 << 16)).tofile(folder / "semantic" / "000001.label")
    for frame in ("000000", "000002"):
        np.save(folder / "lanes" / f"{frame}.npy", np.full((100, 100), int(frame[-1]), np.uint8))
    return kitti_cfg


@pytest.fixture
def folder(labelled: EasyDict) -> Path:
    return Path(labelled.DATA_PATH) / "training"


@pytest.fixture
def dataset(labelled: EasyDict, kitti: Kitti) -> Kitti:
    return kitti


def test_labels_are_in_the_order_of_the_points(dataset: Kitti) -> None:
    sample = dataset().load_sample(0)
    assert sample["point_labels"].dtype == np.int64 and sample["lane_map"].dtype == np.uint8
    np.testing.assert_array_equal(sample["point_labels"], np.arange(410) % 3)
    assert sample["lane_map"].shape == (100, 100)


def test_a_label_file_holds_the_class_in_its_lower_16_bits(dataset: Kitti) -> None:
    np.testing.assert_array_equal(dataset().load_sample(1)["point_labels"], np.arange(410) % 3)


def test_labels_go_with_their_points_through_the_camera_filter(labelled: EasyDict, dataset: Kitti) -> None:
    whole = dataset().load_sample(0)
    labelled.FOV_POINTS_ONLY = True
    seen = dataset().load_sample(0)
    assert 0 < len(seen["point_labels"]) == len(seen["points"]) < 410
    pairs = {(*point[:3], label) for point, label in zip(whole["points"], whole["point_labels"], strict=True)}
    found = {(*point[:3], label) for point, label in zip(seen["points"], seen["point_labels"], strict=True)}
    assert found < pairs


def test_frames_without_a_file_are_labelled_in_part(dataset: Kitti) -> None:
    frames = dataset(training=True)
    assert frames.labels == ("gt_boxes", "point_labels", "lane_map")
    assert frames.semantic_class_names == tuple(CLASSES) and frames.lane_map_shape == (100, 100)
    batch = frames.collate_batch([frames[index] for index in range(3)])
    assert batch["has_point_labels"].tolist() == [True, True, False]
    assert batch["has_lane_map"].tolist() == [True, False, True]
    assert len(batch["point_labels"]) == len(batch["points"])


def test_without_being_asked_for_labels_are_not_read(labelled: EasyDict, dataset: Kitti) -> None:
    labelled.GET_ITEM_LIST = ["points"]
    assert dataset().labels == ("gt_boxes",)
    assert not {"point_labels", "lane_map"} & dataset().load_sample(0).keys()


def test_a_label_map_turns_values_into_classes(labelled: EasyDict, folder: Path, dataset: Kitti) -> None:
    labelled.SEMANTIC.LABEL_MAP = {"road": [40, 44], "car": 10, "ignore": [0]}
    np.save(folder / "semantic" / "000000.npy", np.array([40, 44, 10, 0] + [0] * 406))
    assert dataset().load_sample(0)["point_labels"][:5].tolist() == [0, 0, 1, 255, 255]


FILES: list[tuple[str, Any, str]] = [
    ("semantic/000000.npy", np.zeros(409, int), "one label for each of the 410 points of its frame; got 409"),
    ("semantic/000000.npy", np.zeros((410, 1), int), "got 410x1"),
    ("semantic/000000.npy", np.full(410, 3), r"0\.\.2 \(3 classes\) or 255 \(ignore\); got 3\. .*LABEL_MAP"),
    ("semantic/000000.npy", np.full(410, -1), "got -1"),
    ("semantic/000000.npy", np.zeros(410), "whole numbers; got an array of float64"),
    ("semantic/000000.npy", b"\x93NUMPY", "not an array that numpy saved"),
    ("semantic/000000.label", bytes(4 * 409), "each of the 410 points"),
    ("semantic/000000.label", bytes(4 * 410 - 1), "4 bytes a point; got 1639 bytes"),
    ("lanes/000000.npy", np.zeros((100, 99), np.uint8), r"100 rows \(y\) and 100 columns \(x\).*got 100x99"),
    ("lanes/000000.npy", np.full((100, 100), 256), r"0\.\.254 and 255 for no lane; got 256\.\.256"),
    ("lanes/000000.npy", np.zeros((100, 100)), "whole numbers"),
]


@pytest.mark.parametrize(("name", "content", "message"), FILES)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(
    folder: Path, dataset: Kitti, name: str, content: Any, message: str
) -> None:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(DataError, match=rf"{path}: .*{message}"):
        dataset().load_sample(0)


def test_a_value_that_the_label_map_does_not_list_is_an_error(
    labelled: EasyDict, folder: Path, dataset: Kitti
) -> None:
    labelled.SEMANTIC.LABEL_MAP = {"road": [40], "ignore": [0]}
    np.save(folder / "semantic" / "000000.npy", np.array([40, 252] + [0] * 408))
    with pytest.raises(DataError, match=r"values that .*LABEL_MAP lists; got 252"):
        dataset().load_sample(0)


@pytest.mark.parametrize("key", ["point_labels", "lane_map"])
def test_a_task_without_labels_anywhere_stops_a_training_and_not_a_test(
    folder: Path, dataset: Kitti, key: str
) -> None:
    for path in (folder / {"point_labels": "semantic", "lane_map": "lanes"}[key]).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"asks for {key}, but none of the 3 frames .*docs/labels\.md"):
        dataset()
    assert key not in dataset(training=False).labels


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"SEMANTIC": {}}, r"DATA_CONFIG\.SEMANTIC\.CLASSES is required"),
    ({"SEMANTIC": {"CLASSES": ["a", "a"]}}, "different names"),
    ({"SEMANTIC": {"CLASSES": "road"}}, r"SEMANTIC\.CLASSES must be a list .*write \[road\]"),
    ({"SEMANTIC": {"CLASSES": ["a"], "NAMES": ["b"]}}, r"SEMANTIC\.NAMES is not a key"),
    ({"SEMANTIC": {"CLASSES": ["a"], "LABEL_MAP": [1]}}, r"LABEL_MAP must be a section"),
    (
        {"SEMANTIC": {"CLASSES": ["a"], "LABEL_MAP": {"b": [1], "a": [2, 2]}}},
        r"LABEL_MAP.b is not a class[\s\S]*2 is listed twice",
    ),
    (
        {"SEMANTIC": {"CLASSES": ["a"], "LABEL_MAP": {"a": ["x"]}}},
        r"SEMANTIC\.LABEL_MAP\.a.* must be a whole number from 0 to 65535",
    ),
    ({"LANE": {}}, r"LANE\.CELL_SIZE is required"),
    ({"LANE": {"CELL_SIZE": 0}}, r"LANE\.CELL_SIZE must be a number above 0; got 0"),
    ({"LANE": {"CELL_SIZE": 0.7}}, r"must divide POINT_CLOUD_RANGE in x and y \(64 by 64 m\)"),
    (
        {"GET_ITEM_LIST": ["points", "images"]},
        r"GET_ITEM_LIST\[1\] must be one of .*; got 'images'",
    ),
    ({"GET_ITEM_LIST": ["lane_map"]}, "GET_ITEM_LIST must be a list with points in it"),
]


@pytest.mark.parametrize(("changes", "message"), SETTINGS)
def test_settings_that_cannot_be_used_are_errors(
    labelled: EasyDict, dataset: Kitti, changes: dict[str, Any], message: str
) -> None:
    labelled.update(changes)
    with pytest.raises(ConfigError, match=message):
        dataset()


@pytest.mark.parametrize("key", ["SEMANTIC", "LANE"])
def test_asking_for_labels_without_their_settings_names_the_key(
    labelled: EasyDict, dataset: Kitti, key: str
) -> None:
    del labelled[key]
    with pytest.raises(ConfigError, match=rf"DATA_CONFIG\.{key} is required"):
        dataset()
