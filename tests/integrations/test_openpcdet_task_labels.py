"""Labels of task heads in OpenPCDet, on their way from the data set to the batch."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from openpcdet_tasks import FLIP, PASTE, TURN, Head, batches, number_of_point

from pcdet_freeze import openpcdet
from pcdet_freeze.errors import DataError
from pcdet_freeze.integrations.openpcdet.tasks import registry
from pcdet_freeze.integrations.openpcdet.tasks.frame_arrays import MATRIX
from pcdet_freeze.integrations.openpcdet.tasks.point_columns import match_rows

pytestmark = pytest.mark.usefixtures("no_tasks")


def xyz_of_40(frame: Any, dataset: Any) -> np.ndarray:
    return frame["points"][:40, :3].copy()


def moved(xyz: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return xyz @ matrix[:3, :3].T + matrix[:3, 3]


def test_labels_follow_their_points_through_flip_rotation_range_mask_and_shuffle(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="intensity", read=number_of_point)
    for batch in batches(loader(FLIP, TURN)):
        points, labels = batch["points"], batch["intensity"]
        assert labels.dtype == np.float32 and labels.shape == (len(points),)
        assert np.array_equal(labels, points[:, 3] * 64)
        assert 60 < len(points) < 160 and (np.diff(labels) < 0).any()  # masked and shuffled


def test_batches_are_bitwise_equal_with_and_without_labels(loader: Any) -> None:
    plain = batches(loader(PASTE, FLIP, TURN))
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="point_labels", read=number_of_point)
    for before, after in zip(plain, batches(loader(PASTE, FLIP, TURN)), strict=True):
        assert set(after) - set(before) == {"point_labels"}
        assert all(np.array_equal(before[key], after[key]) for key in before)
        assert after["points"].flags["C_CONTIGUOUS"] and after["points"].dtype == before["points"].dtype


@pytest.mark.parametrize(("pasted", "expected"), [({}, 255), ({"Car": 7}, 7)])
def test_pasted_points_are_ignored_or_have_the_label_of_their_class(
    loader: Any, pasted: Any, expected: int
) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point, pasted=pasted)
    new = 0
    for batch in batches(loader(PASTE)):
        own = batch["points"][:, 3] * 64 == batch["points"][:, 3].round(6) * 64
        own &= (batch["points"][:, 3] * 64) % 1 == 0
        assert np.array_equal(batch["labels"][own], batch["points"][own, 3] * 64)
        assert (batch["labels"][~own] == expected).all()
        new += (~own).sum()
    assert new > 20


def test_an_augmentor_that_changes_every_point_is_an_error(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point)
    with pytest.raises(DataError, match=r"jitter .*DISABLE_AUG_LIST"):
        batches(loader({"NAME": "jitter"}))


def test_a_frame_without_boxes_gives_the_labels_of_the_frame_that_replaces_it(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point)
    frame = loader(FLIP).dataset[8]
    assert frame["frame_id"] != "8" and np.array_equal(frame["labels"], frame["points"][:, 2] * 64)


@pytest.mark.parametrize("kind", ["tuple", "none", "own key"])
def test_labels_come_from_other_points_of_the_scan_from_the_data_set_or_are_absent(
    loader: Any, kind: str
) -> None:
    def read(frame: Any, dataset: Any) -> Any:
        labels = np.arange(len(frame["points"]))
        return None if kind == "none" else (frame["points"][5::-1, :3], labels[5::-1])

    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=None if kind == "own key" else read)
    points = np.random.RandomState(0).uniform(-1, 1, (9, 4)).astype(np.float32)
    frame = {"points": points, "labels": np.arange(9), "gt_boxes": np.zeros((1, 7)), "gt_names": ["Car"]}
    found = loader(training=False).dataset.prepare_data(frame)
    known = {"tuple": 6, "none": 0, "own key": 9}[kind]
    assert found["labels"].tolist() == [*range(known), *[255] * (9 - known)]


def test_a_wrong_number_of_labels_names_the_frame_and_what_to_return(loader: Any) -> None:
    openpcdet.add_task("S_HEAD", Head, labels="labels", read=lambda frame, dataset: np.zeros(3))
    with pytest.raises(DataError, match=r"labels of frame \d .*shape \(4\d,\).*\(3,\).*FOV_POINTS_ONLY"):
        batches(loader())


def test_rows_are_matched_by_value() -> None:
    known = np.random.RandomState(0).randn(1000, 3).astype(np.float32)
    known[7] = known[3]
    asked = np.concatenate([known[::-1], known[:2] + 1])
    expected = [*range(999, 7, -1), 3, *range(6, -1, -1), -1, -1]
    assert match_rows(known, asked).tolist() == expected
    assert match_rows(known[:0], asked[:2]).tolist() == [-1, -1]


def test_a_data_set_with_labels_can_be_pickled_for_spawned_workers(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point)
    found = loader(FLIP)
    dataset, collate = pickle.loads(pickle.dumps((found.dataset, found.collate_fn)))
    openpcdet.uninstall()
    registry.clear()
    batch = collate([dataset[0], dataset[1]])
    assert np.array_equal(batch["labels"], batch["points"][:, 3] * 64)


def test_an_array_of_a_frame_follows_the_augmentation_by_its_transform(loader: Any) -> None:
    openpcdet.add_task("LANE_HEAD", Head, labels="xyz", per="frame", read=xyz_of_40, transform=moved)
    plain = batches(loader(TURN, FLIP))
    assert all(MATRIX not in batch for batch in plain)
    for batch in plain:
        assert batch["xyz"].shape == (4, 40, 3)
        for k in range(4):
            points = batch["points"][batch["points"][:, 0] == k][:, 1:]
            number = (points[:, 2] * 64).astype(int)
            near = np.abs(batch["xyz"][k][number[number < 40]] - points[number < 40])
            assert near.max() < 1e-6


@pytest.mark.parametrize(
    ("augmentor", "transform", "words"),
    [(FLIP, None, "random_world_flip.*transform="), ({"NAME": "jitter"}, moved, "cannot follow jitter")],
)
def test_an_array_of_a_frame_that_cannot_follow_the_augmentation_is_refused(
    loader: Any, augmentor: Any, transform: Any, words: str
) -> None:
    openpcdet.add_task("LANE_HEAD", Head, labels="xyz", per="frame", read=xyz_of_40, transform=transform)
    with pytest.raises(DataError, match=words):
        loader(augmentor)
    loader(augmentor, training=False)
