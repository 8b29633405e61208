"""Workers send points as tensors; voxels computed on the device equal those of the workers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from torch.utils.data import DataLoader
from toy_dataset import ToyDataset

from pcdet_freeze.datasets.late_voxels import LateVoxels, send_points
from pcdet_freeze.ops.batch_tensors import as_tensors

VOXELS = ("voxels", "voxel_coords", "voxel_num_points")


@pytest.fixture
def voxel_cfg(toy_cfg: EasyDict) -> EasyDict:
    step = {"NAME": "transform_points_to_voxels", "VOXEL_SIZE": [0.5, 0.5, 4], "MAX_POINTS_PER_VOXEL": 2}
    toy_cfg.DATA_PROCESSOR.append({**step, "MAX_NUMBER_OF_VOXELS": {"train": 20, "test": 20}})
    return toy_cfg


def loader_of(cfg: Any, workers: int = 0) -> DataLoader:
    dataset = ToyDataset(cfg, ["Car"], True)
    return DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=dataset.collate_batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_late_voxels_are_those_of_the_processor_bit_for_bit(voxel_cfg: EasyDict, workers: int) -> None:
    early, late = loader_of(voxel_cfg), loader_of(voxel_cfg, workers)
    add = send_points(late)
    assert isinstance(add, LateVoxels)
    for expected, found in zip(early, late, strict=True):
        assert not any(key in found for key in VOXELS)
        add(found)
        assert all(torch.equal(found[key], torch.from_numpy(expected[key])) for key in VOXELS)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_late_voxels_of_a_gpu_are_those_of_the_processor_bit_for_bit(voxel_cfg: EasyDict) -> None:
    early, late = next(iter(loader_of(voxel_cfg))), loader_of(voxel_cfg)
    add = send_points(late)
    batch = next(iter(late))
    batch["points"] = batch["points"].cuda()
    assert add is not None
    add(batch)
    assert all(torch.equal(batch[key].cpu(), torch.from_numpy(early[key])) for key in VOXELS)


def test_a_batch_that_has_voxels_keeps_them(voxel_cfg: EasyDict) -> None:
    loader = loader_of(voxel_cfg)
    batch = as_tensors(next(iter(loader)))
    before = batch["voxels"]
    add = send_points(loader)
    assert add is not None
    add(batch)
    assert batch["voxels"] is before


def test_where_another_step_needs_the_voxels_the_workers_make_them(voxel_cfg: EasyDict) -> None:
    shuffle = {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}}
    voxel_cfg.DATA_PROCESSOR.append(shuffle)
    loader = loader_of(voxel_cfg)
    assert send_points(loader) is None
    assert all(torch.is_tensor(next(iter(loader))[key]) for key in VOXELS)


def test_points_of_samples_in_any_order_are_told_apart(voxel_cfg: EasyDict) -> None:
    loader = loader_of(voxel_cfg)
    add, batch = send_points(loader), next(iter(loader))
    assert add is not None
    mixed = {**batch, "points": torch.cat([batch["points"][batch["points"][:, 0] == s] for s in (2, 0, 1)])}
    add(batch)
    add(mixed)
    assert all(torch.equal(batch[key], mixed[key]) for key in VOXELS)


def test_a_sample_without_points_gets_no_voxels(toy: Callable, voxel_cfg: EasyDict) -> None:
    add = send_points(loader_of(voxel_cfg))
    assert add is not None
    batch = {"points": torch.tensor([[1, 1.0, 1, 0, 0]]), "batch_size": 3}
    add(batch)
    assert batch["voxel_coords"][:, 0].tolist() == [1] and batch["voxels"].shape == (1, 2, 4)


def test_numeric_arrays_become_tensors_and_names_are_kept() -> None:
    batch = {"a": np.zeros(2), "frame_id": np.array([3, 4]), "names": np.array(["x"]), "batch_size": 2}
    found = as_tensors(batch)
    assert found["a"].dtype == torch.float32 and found["frame_id"] is batch["frame_id"]
    assert found["names"] is batch["names"] and found["batch_size"] == 2
