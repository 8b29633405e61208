"""DatasetTemplate: skipping, randomness, classes, collating."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from toy_dataset import ToyDataset

from pcdet_freeze.datasets import DATASETS, build_dataset, loader
from pcdet_freeze.datasets.point_features import PointFeatureEncoder
from pcdet_freeze.datasets.template import LabelForms
from pcdet_freeze.errors import ConfigError, DataError


def test_a_sample_has_its_class_column_and_no_names(toy: Callable) -> None:
    sample = toy()[3]
    assert sample["gt_boxes"].shape == (1, 8)
    assert sample["gt_boxes"][0, 7] == 1  # the Van is gone, the Car is class 1
    assert "gt_names" not in sample


class AsInOpenPCDet(ToyDataset):
    """The constructor of a data set written for OpenPCDet's template; no form of a label is set in it."""

    def __init__(
        self,
        dataset_cfg: Any,
        class_names: Any,
        training: bool = True,
        root_path: Any = None,
        logger: Any = None,
    ) -> None:
        super().__init__(dataset_cfg=dataset_cfg, class_names=class_names, training=training,
                         root_path=root_path, logger=logger)  # fmt: skip
        self.sample_id_list = list(range(10))

    @classmethod
    def label_forms(cls, dataset_cfg: Any) -> LabelForms:
        return LabelForms(("road", "car"), (4, 4))


def test_a_data_set_with_openpcdets_constructor_has_its_label_forms_before_its_augmentors(
    toy_cfg: EasyDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DATASETS, "get", lambda name: AsInOpenPCDet)
    monkeypatch.setattr(loader, "find", lambda registry, name: AsInOpenPCDet)
    (tmp_path / "db.pkl").write_bytes(pickle.dumps({"Car": []}))
    toy_cfg.DATA_AUGMENTOR = [
        {"NAME": "gt_sampling", "DB_INFO_PATH": ["db.pkl"], "SAMPLE_GROUPS": ["Car:1"],
         "NUM_POINT_FEATURES": 4, "POINT_LABELS": {"Car": "car"}}
    ]  # fmt: skip
    found = build_dataset(toy_cfg, ["Car"], True, root_path=tmp_path)
    assert (found.semantic_class_names, found.lane_map_shape) == (("road", "car"), (4, 4))
    assert found.sample_id_list == list(range(10)) and found.data_augmentor.steps[0].point_labels == {
        "Car": 1
    }


def test_every_data_set_has_the_constructor_of_the_template() -> None:
    loader.register_all()
    kinds = [DATASETS.get(name) for name in DATASETS.names()]
    ours = [kind for kind in kinds if kind.__module__.startswith("pcdet_freeze.")]
    assert len(ours) >= 10
    assert [kind.__name__ for kind in ours if "__init__" in vars(kind)] == []


def test_training_skips_a_bad_frame_and_names_it(toy: Callable, caplog: pytest.LogCaptureFixture) -> None:
    sample = toy(bad=(3, 4))[3]
    assert sample["frame_id"] == "5"
    assert sample["skipped_frames"] == ["3", "4"]
    assert "skipped frame 3 (1 so far): frame 3 is broken" in caplog.text


def test_a_skip_is_logged_once_a_frame(toy: Callable, caplog: pytest.LogCaptureFixture) -> None:
    dataset = toy(bad=(9,))
    assert [dataset[9]["frame_id"] for _ in range(3)] == ["0", "0", "0"]
    assert caplog.text.count("skipped frame 9") == 1


def test_a_bad_frame_is_an_error_in_test_mode(toy: Callable) -> None:
    with pytest.raises(DataError, match="frame 3 is broken"):
        toy(bad=(3,), training=False)[3]


def test_a_data_set_without_a_good_frame_is_an_error(toy: Callable) -> None:
    message = r"no usable frame: all 10 were skipped.*; frame 7: frame 7 is broken"
    with pytest.raises(DataError, match=message):
        toy(bad=tuple(range(10)))[7]


def test_training_passes_over_frames_without_boxes(toy: Callable) -> None:
    sample = toy(empty=(0,))[0]
    assert (sample["frame_id"], sample["skipped_frames"]) == ("1", ["0"])


def test_frames_without_boxes_are_kept_if_configured(toy: Callable, toy_cfg: EasyDict) -> None:
    toy_cfg.KEEP_EMPTY_FRAMES = True
    assert toy(empty=(0,))[0]["gt_boxes"].shape == (0, 8)


def test_frames_without_boxes_are_kept_in_test_mode(toy: Callable) -> None:
    assert toy(empty=(0,), training=False)[0]["gt_boxes"].shape == (0, 8)


def test_a_sample_is_a_pure_function_of_seed_epoch_and_index(toy: Callable) -> None:
    dataset, other = toy(), toy()
    dataset[1]  # draws of other samples change nothing
    np.testing.assert_array_equal(dataset[2]["point_labels"], other[2]["point_labels"])
    first = dataset[2]["point_labels"]
    dataset.set_epoch(1)
    assert not np.array_equal(dataset[2]["point_labels"], first)
    other.seed = 7
    assert not np.array_equal(other[2]["point_labels"], first)


def test_test_mode_augments_nothing(toy: Callable) -> None:
    dataset = toy(training=False)
    np.testing.assert_array_equal(dataset[2]["points"], dataset.load_sample(2)["points"])
    assert dataset.mode == "test"


def test_collate_builds_the_batch(toy: Callable) -> None:
    dataset = toy(empty=(1,), training=False)
    batch = dataset.collate_batch([dataset[i] for i in range(3)])
    assert batch["batch_size"] == 3
    assert batch["frame_id"].tolist() == ["0", "1", "2"]
    assert batch["gt_boxes"].shape == (3, 1, 8)
    assert not batch["gt_boxes"][1].any()
    assert batch["lane_map"].shape == (3, 4, 4)
    np.testing.assert_array_equal(batch["points"][:, 0], np.repeat([0, 1, 2], 10))
    assert batch["points"].dtype == np.float32
    assert batch["point_labels"].shape == (30,)


def test_a_batch_without_any_box_keeps_one_zero_row(toy: Callable) -> None:
    dataset = toy(empty=(0, 1), training=False)
    assert dataset.collate_batch([dataset[0], dataset[1]])["gt_boxes"].shape == (2, 1, 8)


def test_skipped_frames_of_a_batch_are_one_list(toy: Callable) -> None:
    dataset = toy(bad=(3, 5))
    batch = dataset.collate_batch([dataset[3], dataset[4], dataset[5]])
    assert batch["skipped_frames"] == ["3", "5"]


def test_point_features_are_picked_by_name() -> None:
    encoder = PointFeatureEncoder({"used_feature_list": ["x", "y", "z", "t"],
                                   "src_feature_list": ["x", "y", "z", "intensity", "t"]})  # fmt: skip
    sample = {"points": np.arange(10, dtype=np.float32).reshape(2, 5)}
    encoder(sample)
    assert sample["points"].tolist() == [[0, 1, 2, 4], [5, 6, 7, 9]]
    assert encoder.num_point_features == 4


@pytest.mark.parametrize("used, src, message", [
    (["x", "y", "z", "t"], ["x", "y", "z"], "does not have"),
    (["y", "x", "z"], ["x", "y", "z"], "begins with x, y, z"),
])  # fmt: skip
def test_features_that_are_not_there_are_an_error(used: list[str], src: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PointFeatureEncoder({"used_feature_list": used, "src_feature_list": src})


def test_points_with_other_columns_than_named_are_an_error() -> None:
    encoder = PointFeatureEncoder({"used_feature_list": ["x", "y", "z"], "src_feature_list": ["x", "y", "z"]})
    with pytest.raises(ConfigError, match="points have 4"):
        encoder({"points": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize("limits", [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0], "wide", None])
def test_a_range_without_extent_is_an_error(toy: Callable, toy_cfg: EasyDict, limits: object) -> None:
    toy_cfg.POINT_CLOUD_RANGE = limits
    with pytest.raises(ConfigError, match="POINT_CLOUD_RANGE"):
        toy()
