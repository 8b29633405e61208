"""Checkpoints whose keys carry the prefix of a wrapper: ``module.``, ``_orig_mod.``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pcdet_freeze.engine.checkpoint.weights import load_model_state, load_pretrained
from pcdet_freeze.errors import CheckpointError

LOGGER = logging.getLogger("pcdet_freeze")
PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


def prefixed(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors_of(model).items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_whole_state_loads_without_its_prefix_and_the_log_says_so(prefix: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    source, model = ToyModel(), ToyModel()
    load_model_state(model, prefixed(source, prefix), "a.pth")
    assert_same_state(tensors_of(model), tensors_of(source))
    assert f"a.pth: removed the prefix '{prefix}'" in caplog.text


def test_a_pretrained_model_loads_without_its_prefix(tmp_path: Path) -> None:
    source, model = ToyModel(), ToyModel()
    torch.save({"model_state": prefixed(source, "module.")}, tmp_path / "a.pth")
    fit = load_pretrained(model, tmp_path / "a.pth", LOGGER)
    assert len(fit.loaded) == len(tensors_of(source)) and not fit.unexpected
    assert_same_state(tensors_of(model), tensors_of(source))


def test_an_averaged_model_loads_without_prefix_and_counter() -> None:
    source, model = ToyModel(), ToyModel()
    load_model_state(model, AveragedModel(source).state_dict(), "ema.pth")
    assert_same_state(tensors_of(model), tensors_of(source))


def test_a_prefix_of_some_keys_only_is_not_removed() -> None:
    state = prefixed(ToyModel(), "module.")
    state["head.bias"] = state.pop("module.head.bias")
    with pytest.raises(CheckpointError, match=r"unexpected.*module\."):
        load_model_state(ToyModel(), state, "a.pth")


class Own(nn.Module):
    """A model with a child of its own that is called ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)


def test_the_own_child_of_a_model_that_is_called_module_is_no_prefix() -> None:
    source, model = Own(), Own()
    load_model_state(model, source.state_dict(), "a.pth")
    assert_same_state(tensors_of(model), tensors_of(source))
    load_model_state(model, prefixed(source, "_orig_mod."), "a.pth")
