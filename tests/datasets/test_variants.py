"""F7, data: a bounded number of variants, alternating; each sample has its variant; batches of one sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from easydict import EasyDict

from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.collate import collate, last_sample
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models import load_data_to_gpu

NAMES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def data(root: Path) -> Any:
    """Four simulated scenes with every kind of label, augmented and shuffled."""
    cfg = EasyDict(yaml.safe_load((root / "cfgs/dataset_configs/synthetic_dataset.yaml").read_text()))
    cfg.update(NUM_SCENES={"train": 4, "test": 1}, MIN_CARS=1)
    cfg.SENSOR.BEAMS = "VLP-16"
    return build_dataset(cfg, NAMES, training=True)


def points_in(data: Any, epoch: int, index: int = 1) -> np.ndarray:
    data.set_epoch(epoch)
    return data[index]["points"]


def test_without_a_cache_every_epoch_draws_anew_and_samples_say_nothing(data: Any) -> None:
    assert not np.array_equal(points_in(data, 0), points_in(data, 2))
    assert "cache_entry" not in data[0]


def test_f7_variants_alternate_and_equal_those_of_the_first_epochs(data: Any) -> None:
    first, second = points_in(data, 0), points_in(data, 1)
    data.keep_variants(2)
    assert not np.array_equal(first, second)
    for epoch in range(6):
        assert np.array_equal(points_in(data, epoch), (first, second)[epoch % 2])


def test_f7_labels_belong_to_the_draw_of_the_points(data: Any) -> None:
    data.keep_variants(2)
    drawn = []
    for epoch in (1, 3):
        data.set_epoch(epoch)
        drawn.append(data[2])
    for key in ("gt_boxes", "point_labels", "lane_map", "voxels"):
        assert np.array_equal(drawn[0][key], drawn[1][key])


def test_f7_each_draw_has_a_row_of_its_own_and_a_checksum_of_its_points(data: Any) -> None:
    data.keep_variants(3)
    entries = []
    for epoch in range(3):
        data.set_epoch(epoch)
        entries += [data[index]["cache_entry"].tolist() for index in range(4)]
    assert sorted(row for row, _ in entries) == list(range(12)) == list(range(data.cache_key()["rows"]))
    assert len({source for _, source in entries}) == 12
    batch = collate([data[0], data[3]])
    load_data_to_gpu(batch, "cpu")
    assert batch["cache_entry"].tolist() == [[2, entries[8][1]], [11, entries[11][1]]]


def test_f7_a_sample_that_is_passed_over_leaves_its_row_empty(data: Any) -> None:
    data.keep_variants(1)
    data._is_empty = lambda sample: sample["frame_id"] == data.load_sample(1)["frame_id"]
    assert data[1]["cache_entry"][0] == 2


def test_f7_random_steps_without_variants_are_an_error_that_names_them(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"random_world_flip, .*, shuffle_points are random"):
        data.keep_variants(None)
    assert data.variants is None


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("tensors", [False, True])
def test_f7_the_last_sample_of_a_batch_makes_a_batch_of_another_size(
    data: Any, size: int, tensors: bool
) -> None:
    samples = [data[index] for index in range(size)]
    batch, copies = collate(samples), 3 if size == 2 else 2
    expected = collate(samples[-1:] * copies)
    if tensors:
        load_data_to_gpu(batch, torch.device("cpu"))
    found = last_sample(batch)
    assert found.keys() == expected.keys() and found["batch_size"] == copies
    for key in set(expected) - {"skipped_frames", "batch_size"}:
        value = np.asarray(found[key])
        if key == "gt_boxes":  # padded to the longest of its old batch
            value = value[:, : expected[key].shape[1]]
        assert np.array_equal(value, np.asarray(expected[key])), key
