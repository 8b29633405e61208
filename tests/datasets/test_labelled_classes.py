"""Frames whose boxes are labelled for some classes only: boxes of others are removed, batches say which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from toy_dataset import ToyDataset

from pcdet_freeze.datasets.collate import collate
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import ConfigError

NAMES = ["Car", "Van"]


class FramesOfTheirOwn(ToyDataset):
    """Frame 1 says itself that it is labelled for Car."""

    def load_sample(self, index: int) -> dict[str, Any]:
        own = {"labelled_classes": ["Car"]} if index == 1 else {}
        return super().load_sample(index) | own


def dataset(cfg: EasyDict, value: Any = None, training: bool = True, kind: Any = ToyDataset) -> Any:
    return kind(cfg | {"LABELLED_CLASSES": value}, NAMES, training)


def classes(sample: dict[str, Any]) -> list[float]:
    return sorted(sample["gt_boxes"][:, -1].tolist())


def test_without_the_key_a_sample_is_as_it_was(toy_cfg: EasyDict) -> None:
    sample = dataset(toy_cfg)[0]
    assert "labelled_classes" not in sample and classes(sample) == [1, 2]
    assert "labelled_classes" not in collate([sample])


def test_boxes_of_other_classes_are_removed_and_the_sample_says_what_is_labelled(toy_cfg: EasyDict) -> None:
    sample = dataset(toy_cfg, ["Van"])[0]
    assert sample["labelled_classes"].tolist() == [False, True] and classes(sample) == [2]


@pytest.mark.parametrize(("training", "found"), [(True, [1]), (False, [1, 2])])
def test_a_split_has_labels_of_its_own(toy_cfg: EasyDict, training: bool, found: list[int]) -> None:
    sample = dataset(toy_cfg, {"train": ["Car"], "test": NAMES}, training)[0]
    assert classes(sample) == found


def test_a_frame_may_say_itself_what_it_is_labelled_for(toy_cfg: EasyDict) -> None:
    data = dataset(toy_cfg, kind=FramesOfTheirOwn, training=False)
    batch = collate([data[0], data[1]])
    assert batch["labelled_classes"].tolist() == [[True, True], [True, False]]
    assert batch["labelled_classes"].dtype == bool and classes(data[1]) == [1]


def test_boxes_that_an_augmentor_adds_for_other_classes_are_removed_too(
    toy_cfg: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def paste(sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        boxes, names = sample["gt_boxes"], sample["gt_names"]
        return sample | {"gt_boxes": boxes.repeat(2, 0), "gt_names": np.append(names, "Car")}

    data: DatasetTemplate = dataset(toy_cfg, ["Van"])
    monkeypatch.setattr(data, "data_augmentor", paste)
    assert classes(data.prepare_data(data.load_sample(0), np.random.RandomState(0))) == [2]


def test_a_class_that_the_config_does_not_have_is_an_error(toy_cfg: EasyDict) -> None:
    with pytest.raises(
        ConfigError, match=r"LABELLED_CLASSES must be among CLASS_NAMES \(Car, Van\); got 'Vam'"
    ):
        dataset(toy_cfg, ["Vam"])
    with pytest.raises(ConfigError, match=r"DATA_CONFIG\.LABELLED_CLASSES"):
        dataset(toy_cfg, 3)
