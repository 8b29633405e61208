"""Range mask, shuffle, sampling, voxels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_freeze.datasets.processor.data_processor import DataProcessor
from pcdet_freeze.datasets.processor.points import points_in_range
from pcdet_freeze.datasets.registry import PROCESSORS
from pcdet_freeze.errors import ConfigError, DataError

LIMITS = np.array([0, -39.68, -3, 69.12, 39.68, 1], np.float32)
MASK = {"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True}
VOXELS = {"NAME": "transform_points_to_voxels", "VOXEL_SIZE": [0.16, 0.16, 4], "MAX_POINTS_PER_VOXEL": 32,
          "MAX_NUMBER_OF_VOXELS": {"train": 100, "test": 200}}  # fmt: skip


def processor(*configs: dict[str, Any], training: bool = True) -> DataProcessor:
    return DataProcessor(configs, LIMITS, training, 4)


def cloud(number: int = 500) -> dict[str, Any]:
    points = np.random.RandomState(0).uniform([-10, -50, -5, 0], [80, 50, 3, 1], (number, 4))
    return {"points": points.astype(np.float32), "point_labels": np.arange(number), "frame_id": "7"}


def rng() -> np.random.RandomState:
    return np.random.RandomState(1)


def test_the_range_mask_is_openpcdets(reference: Path) -> None:
    border = json.loads((reference / "voxel_aug.json").read_text())["border"]
    mask = points_in_range(np.array(border["points"], np.float32), LIMITS)
    assert mask.tolist() == border["mask_points_by_range"]


@pytest.mark.parametrize("key, options", [
    ("center", {}), ("center", {"USE_CENTER_TO_FILTER": True}),
    ("corners1", {"USE_CENTER_TO_FILTER": False}),
    ("corners8", {"USE_CENTER_TO_FILTER": False, "min_num_corners": 8}),
])  # fmt: skip
def test_boxes_outside_go_as_in_openpcdet(reference: Path, key: str, options: dict[str, Any]) -> None:
    golden = json.loads((reference / "voxel_aug.json").read_text())["mask_boxes"]
    boxes = np.array(golden["boxes"], np.float32)
    sample = processor({**MASK, **options})({**cloud(), "gt_boxes": boxes}, rng())
    np.testing.assert_array_equal(sample["gt_boxes"], boxes[np.array(golden[key])])


def test_voxels_of_border_points_are_openpcdets(reference: Path) -> None:
    border = json.loads((reference / "voxel_aug.json").read_text())["border"]
    sample = processor(VOXELS)({"points": np.array(border["points"], np.float32)}, rng())
    assert sample["voxel_coords"].tolist() == border["coords"]
    assert sample["voxel_num_points"].tolist() == border["num_points"]


def test_boxes_stay_in_test_mode() -> None:
    boxes = np.full((1, 7), 500, np.float32)
    assert len(processor(MASK, training=False)({**cloud(), "gt_boxes": boxes}, rng())["gt_boxes"]) == 1


def test_labels_follow_their_points_through_mask_and_shuffle() -> None:
    before = cloud()
    shuffle = {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}}
    after = processor(MASK, shuffle)(dict(before), rng())
    np.testing.assert_array_equal(after["points"], before["points"][after["point_labels"]])
    assert len(after["points"]) == points_in_range(before["points"], LIMITS).sum()
    assert not (np.diff(after["point_labels"]) > 0).all()


def test_points_are_not_shuffled_where_the_mode_does_not_ask_for_it() -> None:
    shuffle = {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}}
    after = processor(shuffle, training=False)(cloud(), rng())
    np.testing.assert_array_equal(after["point_labels"], np.arange(500))


@pytest.mark.parametrize("number", [100, 500, 700, 1700])
def test_sampling_gives_exactly_the_number_with_labels(number: int) -> None:
    before = cloud()
    cfg = {"NAME": "sample_points", "NUM_POINTS": {"train": number, "test": -1}}
    after = processor(cfg)(dict(before), rng())
    assert len(after["points"]) == number
    assert len(np.unique(after["point_labels"])) == min(number, 500)
    np.testing.assert_array_equal(after["points"], before["points"][after["point_labels"]])


def test_sampling_keeps_far_points_first() -> None:
    before = cloud()
    far = np.linalg.norm(before["points"][:, :3], axis=1) >= 40
    cfg = {"NAME": "sample_points", "NUM_POINTS": {"train": int(far.sum()) + 5, "test": -1}}
    kept = processor(cfg)(dict(before), rng())["point_labels"]
    assert set(np.flatnonzero(far)) <= set(kept)


def test_minus_one_keeps_all_points() -> None:
    cfg = {"NAME": "sample_points", "NUM_POINTS": {"train": 10, "test": -1}}
    assert len(processor(cfg, training=False)(cloud(), rng())["points"]) == 500


def test_sampling_from_nothing_names_the_frame() -> None:
    cfg = {"NAME": "sample_points", "NUM_POINTS": {"train": 10, "test": -1}}
    with pytest.raises(DataError, match="frame 7"):
        processor(cfg)({"points": np.zeros((0, 4), np.float32), "frame_id": "7"}, rng())


@pytest.mark.parametrize("cfg", [
    VOXELS, {"NAME": "transform_points_to_voxels_placeholder", "VOXEL_SIZE": [0.16, 0.16, 4]}])  # fmt: skip
def test_the_voxel_steps_tell_the_grid(cfg: dict[str, Any]) -> None:
    built = processor(cfg)
    assert built.grid_size is not None
    assert built.grid_size.tolist() == [432, 496, 1]
    assert built.grid_size.dtype == np.int64
    assert built.voxel_size == [0.16, 0.16, 4]


def test_the_voxel_cap_is_the_modes() -> None:
    assert len(processor(VOXELS)(cloud(), rng())["voxels"]) == 100
    assert len(processor(VOXELS, training=False)(cloud(2000), rng())["voxels"]) == 200


def test_an_unknown_processor_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        processor({"NAME": "shuffle_pionts"})
    assert all(name in str(error.value) for name in PROCESSORS.names())


def test_a_processor_of_openpcdet_that_is_not_implemented_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"calculate_grid_size.*not implemented"):
        processor({"NAME": "calculate_grid_size"})


@pytest.mark.parametrize("cfg, message", [
    ({"NAME": "shuffle_points", "SHUFFLE_ENABLED": True}, "SHUFFLE_ENABLED must be a section such as {train"),
    ({**VOXELS, "VOXEL_SIZE": [0.1, 0.1]}, "VOXEL_SIZE"),
    ({**VOXELS, "DOUBLE_FLIP": True}, "DOUBLE_FLIP is not implemented"),
    ({**MASK, "MIN_CORNERS": 2}, "MIN_CORNERS is not a key .*did you mean min_num_corners"),
    ({"NAME": "sample_points", "NUM_POINTS": {"train": 0, "test": -1}}, "NUM_POINTS"),
])  # fmt: skip
def test_settings_without_sense_are_errors(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        processor(cfg)
