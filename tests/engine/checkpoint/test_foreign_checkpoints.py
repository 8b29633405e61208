"""Checkpoints as OpenPCDet writes them: old files, numpy's numbers, spconv 1.x weights; never code."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from torch import nn

from pcdet_freeze.engine.checkpoint.compat import fit_layouts
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.checkpoint.weights import load_model_state, load_pretrained
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

LOGGER = logging.getLogger("pcdet_freeze.test")


class SparseModel(nn.Module):
    """A weight as spconv 2 stores it, (out, kz, ky, kx, in), beside a dense convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse = nn.Module()
        self.sparse.weight = nn.Parameter(torch.randn(8, 3, 1, 1, 4))
        self.dense = nn.Conv2d(3, 5, 3, bias=False)


class Runs:
    """Unpickling it runs code: here, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def upstream_file(path: Path, state: dict[str, torch.Tensor], legacy: bool = True, **more: Any) -> Path:
    content = {
        "epoch": 80,
        "it": 100,
        "model_state": state,
        "optimizer_state": None,
        "version": "pcdet+0.6.0",
    }
    torch.save(content | more, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [True, False])
def test_an_old_or_new_file_with_numbers_of_numpy_loads(tmp_path: Path, legacy: bool) -> None:
    source, model = ToyModel(), ToyModel()
    numbers = {"lr": np.float64(0.003), "best": np.float32(1.5), "step": np.int64(7), "done": np.bool_(True)}
    path = upstream_file(tmp_path / "a.pth", source.state_dict(), legacy, accumulated=numbers)
    state = load_checkpoint(path)
    assert state["accumulated"] == numbers
    load_pretrained(model, path, LOGGER)
    assert_same_state(tensors_of(model), tensors_of(source))


def test_an_old_file_is_no_broken_one_where_the_newest_is_looked_for(tmp_path: Path) -> None:
    path = upstream_file(tmp_path / "checkpoint_epoch_80.pth", ToyModel().state_dict())
    found = newest_checkpoint(tmp_path, LOGGER)
    assert found is not None and found[0] == path


@pytest.mark.parametrize("legacy", [True, False])
def test_a_file_that_would_run_code_is_refused_before_it_does(tmp_path: Path, legacy: bool) -> None:
    made = tmp_path / "made"
    path = upstream_file(tmp_path / "a.pth", ToyModel().state_dict(), legacy, extra=Runs(made))
    with pytest.raises(CheckpointError, match="--trust_checkpoint"):
        load_checkpoint(path)
    assert not made.exists()
    load_checkpoint(path, trust=True)
    assert made.exists()


def test_the_list_of_what_is_allowed_is_closed_again(tmp_path: Path) -> None:
    path = upstream_file(tmp_path / "a.pth", {}, lr=np.float64(1))
    load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        torch.load(path, weights_only=True)


def test_sparse_weights_of_spconv_1_are_turned(tmp_path: Path) -> None:
    model = SparseModel()
    wanted = model.sparse.weight.detach().clone()
    old = {"sparse.weight": wanted.movedim(0, -1).contiguous(), "dense.weight": model.dense.weight.detach()}
    assert old["sparse.weight"].shape == (3, 1, 1, 4, 8)
    nn.init.zeros_(model.sparse.weight)
    path = upstream_file(tmp_path / "a.pth", old)
    assert not load_pretrained(model, path, LOGGER).misshaped
    assert model.sparse.weight.equal(wanted)
    nn.init.zeros_(model.sparse.weight)
    load_model_state(model, load_checkpoint(path)["model_state"], path)
    assert model.sparse.weight.equal(wanted)


def test_dense_weights_and_those_that_fit_are_never_turned() -> None:
    model = SparseModel()
    model.dense = nn.Conv2d(3, 3, 3, bias=False)  # square: turned or not, its shape is the same
    state = model.state_dict()
    assert_same_state(fit_layouts(model, state), state)
    wrong = {"dense.weight": torch.zeros(3, 3, 5, 3), "sparse.weight": torch.zeros(7, 7, 7, 7, 7)}
    assert_same_state(fit_layouts(model, wrong), wrong)


def test_a_tensor_of_another_shape_may_be_left_out(tmp_path: Path) -> None:
    source, model = ToyModel(), ToyModel()
    source.head = nn.Linear(8, 2)
    path, head = upstream_file(tmp_path / "a.pth", source.state_dict()), model.head.weight.detach().clone()
    with pytest.raises(CheckpointError, match="--allow_mismatch"):
        load_pretrained(model, path, LOGGER)
    fit = load_pretrained(model, path, LOGGER, allow_mismatch=True)
    assert [line.split()[0] for line in fit.misshaped] == ["head.weight", "head.bias"]
    assert model.head.weight.equal(head)
    assert model.vfe[0].weight.equal(source.vfe[0].weight)
