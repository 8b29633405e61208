"""Partially labelled frames: batches mix them and mark the frames with each label; bad labels are errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toy_dataset import ToyDataset

from pcdet_freeze.datasets.collate import collate
from pcdet_freeze.datasets.frames import LABEL_KEYS, check_labels, keep_boxes
from pcdet_freeze.errors import DataError

FLAGS = {f"has_{key}" for key in LABEL_KEYS}


def sample(number: int, without: tuple[str, ...] = ()) -> dict[str, Any]:
    whole = {
        "points": np.full((3 + number, 4), number, np.float32),
        "frame_id": str(number),
        "gt_boxes": np.full((number, 10), 7, np.float32),
        "point_labels": np.arange(3 + number),
        "lane_map": np.full((4, 6), number, np.uint8),
    }
    return {key: value for key, value in whole.items() if key not in without}


def test_a_batch_marks_the_frames_that_have_each_label() -> None:
    batch = collate([sample(0, ("gt_boxes",)), sample(1, ("point_labels", "lane_map")), sample(2)])
    flags = {key: batch[key].tolist() for key in FLAGS}
    assert flags == {
        "has_gt_boxes": [False, True, True],
        "has_point_labels": [True, False, True],
        "has_lane_map": [True, False, True],
    }
    assert all(batch[key].dtype == bool for key in FLAGS)


@pytest.mark.parametrize("first", [0, 1])
def test_a_missing_label_is_filled_with_the_ignore_value(first: int) -> None:
    samples = [sample(1), sample(2, LABEL_KEYS)]
    batch = collate(samples[first:] + samples[:first])
    bare = 1 - first
    assert batch["point_labels"].dtype == np.int64 and batch["lane_map"].dtype == np.uint8
    assert (batch["point_labels"][batch["points"][:, 0] == bare] == 255).all()
    assert (batch["lane_map"][bare] == 255).all() and batch["lane_map"].shape == (2, 4, 6)
    assert not batch["gt_boxes"][bare].any() and batch["gt_boxes"].shape == (2, 1, 10)


def test_labels_of_the_labelled_frames_are_as_they_were() -> None:
    batch = collate([sample(1), sample(2, LABEL_KEYS)])
    np.testing.assert_array_equal(batch["point_labels"][:4], sample(1)["point_labels"])
    np.testing.assert_array_equal(batch["lane_map"][0], sample(1)["lane_map"])
    np.testing.assert_array_equal(batch["gt_boxes"][0], sample(1)["gt_boxes"])


def test_a_label_that_no_frame_of_the_batch_has_is_not_there_and_its_flags_are_false() -> None:
    batch = collate([sample(1, ("lane_map",)), sample(2, ("lane_map",))])
    assert "lane_map" not in batch and batch["has_lane_map"].tolist() == [False, False]


@pytest.mark.parametrize("key", LABEL_KEYS)
def test_a_label_that_is_none_in_every_frame_is_like_an_absent_one(key: str) -> None:
    batch = collate([sample(1) | {key: None}, sample(2) | {key: None}])
    absent = collate([sample(1, (key,)), sample(2, (key,))])
    assert batch.keys() == absent.keys() and key not in batch
    assert not batch[f"has_{key}"].any()


@pytest.mark.parametrize("key", LABEL_KEYS)
def test_a_label_that_is_none_in_one_frame_is_filled_like_an_absent_one(key: str) -> None:
    batch, absent = (collate([sample(1), other]) for other in (sample(2) | {key: None}, sample(2, (key,))))
    assert batch.keys() == absent.keys()
    np.testing.assert_array_equal(batch[key], absent[key])


def test_any_other_key_that_a_frame_lacks_is_an_error() -> None:
    with pytest.raises(KeyError, match="points"):
        collate([sample(1), sample(2, ("points",))])


def frame(**labels: Any) -> dict[str, Any]:
    return {"frame_id": "000007", "points": np.zeros((5, 4), np.float32), **labels}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"point_labels": np.zeros(4, int)}, r"one label for each of the 5 points; got shape \(4,\)"),
        ({"point_labels": np.array([0, 1, 2, 3, 255])}, r"must be 0..2 \(3 semantic classes\).*got 3"),
        ({"point_labels": np.array([0, 1, 2, -1, 256])}, r"got -1, 256\. Map them with LABEL_MAP"),
        ({"lane_map": np.zeros((4, 5), np.uint8)}, r"4 rows \(y\) and 6 columns \(x\).*got shape \(4, 5\)"),
    ],
)
def test_a_label_that_does_not_fit_is_an_error_that_names_the_frame(
    labels: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"frame 000007: .*{message}"):
        check_labels(frame(**labels), 3, (4, 6))


def test_labels_that_fit_and_frames_without_labels_pass() -> None:
    fit = frame(point_labels=np.array([0, 1, 2, 255, 255]), lane_map=np.zeros((4, 6), np.uint8))
    assert check_labels(fit, 3, (4, 6)) is fit
    assert check_labels(frame(), 3, (4, 6)).keys() == frame().keys()


class Mislabelled(ToyDataset):
    """Frames 2 and 3 have a label that is not a class."""

    semantic_class_names = tuple("abcdefghij")

    def load_sample(self, index: int) -> dict[str, Any]:
        loaded = super().load_sample(index)
        loaded["point_labels"] += index in (2, 3)
        return loaded


def test_a_mislabelled_frame_is_passed_over_in_training_and_an_error_in_test(toy_cfg: Any) -> None:
    training, test = (Mislabelled(toy_cfg, ["Car"], training=mode) for mode in (True, False))
    assert training[2]["skipped_frames"] == ["2", "3"] and training[2]["frame_id"] == "4"
    with pytest.raises(DataError, match=r"frame 3: point_labels must be 0..9"):
        test[3]


class Unboxed(ToyDataset):
    """No frame has a box of the trained class; frame 0 has no other label."""

    def load_sample(self, index: int) -> dict[str, Any]:
        loaded = super().load_sample(index)
        return loaded | {"gt_names": np.array(["Van"] * len(loaded["gt_names"]))}


def test_a_frame_without_boxes_that_has_another_label_is_trained_on(toy_cfg: Any) -> None:
    dataset = Unboxed(toy_cfg, ["Car"], training=True)
    dataset.empty = (0,)
    assert dataset[0]["skipped_frames"] == ["0"] and dataset[0]["frame_id"] == "1"


def test_a_frame_whose_points_are_all_ignored_is_a_frame(toy: Callable[..., ToyDataset]) -> None:
    one = toy()[0]
    one["point_labels"][:] = 255
    assert collate([one])["has_point_labels"].tolist() == [True]


class NoneLabels(ToyDataset):
    """Frames whose labels are None in place of missing."""

    def load_sample(self, index: int) -> dict[str, Any]:
        return super().load_sample(index) | dict.fromkeys(("gt_boxes", "lane_map", "gt_names"))


@pytest.mark.parametrize("training", [True, False])
def test_a_data_set_may_give_none_for_a_label(toy_cfg: Any, training: bool) -> None:
    dataset = NoneLabels(toy_cfg, ["Car"], training=training)
    batch = dataset.collate_batch([dataset[0], dataset[1]])
    assert not {"gt_boxes", "gt_names", "lane_map"} & batch.keys() and "point_labels" in batch
    assert batch["has_gt_boxes"].tolist() == batch["has_lane_map"].tolist() == [False, False]


class Heights(ToyDataset):
    """Every other frame has a height map: a label that this package does not know."""

    labels = ("height_map",)

    def load_sample(self, index: int) -> dict[str, Any]:
        loaded = {key: value for key, value in super().load_sample(index).items() if key not in LABEL_KEYS}
        del loaded["gt_names"]
        return loaded | ({} if index % 2 else {"height_map": np.full((4, 4), 1.5 + index, np.float32)})


def test_a_custom_label_can_be_missing_in_some_frames(toy_cfg: Any) -> None:
    dataset = Heights(toy_cfg, ["Car"], training=True)
    batch = dataset.collate_batch([dataset[1], dataset[2]])
    assert batch["has_height_map"].tolist() == [False, True]
    assert batch["height_map"].dtype == np.float32 and batch["height_map"].shape == (2, 4, 4)
    np.testing.assert_array_equal(batch["height_map"][1], 3.5)
    none = dataset.collate_batch([dataset[1], dataset[3]])
    assert "height_map" not in none and none["has_height_map"].tolist() == [False, False]


def test_boxes_without_a_name_each_are_an_error_and_not_cut() -> None:
    boxes, names = np.ones((3, 7), np.float32), np.array(["Car", "Van"])
    with pytest.raises(DataError, match=r"gt_names .* 3 boxes of gt_boxes; got 2"):
        check_labels({"points": np.zeros((1, 4)), "gt_boxes": boxes, "gt_names": names}, 0, None)
    with pytest.raises(DataError, match="gt_boxes"):
        keep_boxes({"gt_boxes": boxes, "gt_names": names}, names == "Car")
