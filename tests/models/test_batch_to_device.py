"""load_data_to_gpu."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pcdet_freeze.models import load_data_to_gpu


def test_arrays_become_tensors_and_other_values_are_kept() -> None:
    batch = {
        "points": np.zeros((3, 5), dtype=np.float64),
        "voxel_coords": np.zeros((2, 4), dtype=np.int32),
        "lane_map": np.zeros((1, 4, 4), dtype=np.uint8),
        "frame_id": np.array([7, 8]),
        "names": np.array(["a", "b"]),
        "calib": ["one", "two"],
        "batch_size": 2,
        "gt_boxes": torch.zeros(2, 0, 8),
    }
    kept = {key: batch[key] for key in ("frame_id", "names", "calib", "batch_size")}
    load_data_to_gpu(batch, "cpu")
    types = {key: value.dtype for key, value in batch.items() if isinstance(value, torch.Tensor)}
    assert types == {
        "points": torch.float32,
        "voxel_coords": torch.int32,
        "lane_map": torch.uint8,
        "gt_boxes": torch.float32,
    }
    assert all(batch[key] is value for key, value in kept.items())


def test_read_only_and_reversed_arrays_are_copied() -> None:
    array = np.arange(6, dtype=np.float32)
    array.setflags(write=False)
    batch = {"one": array, "two": array[::-1]}
    load_data_to_gpu(batch, "cpu")
    assert batch["one"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["two"].tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_default_is_the_current_gpu() -> None:
    batch = {"points": np.zeros((3, 5), dtype=np.float32)}
    load_data_to_gpu(batch)
    assert batch["points"].is_cuda
