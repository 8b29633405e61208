"""P4: the second model, which shows what is constant, is built as the first one was."""

from __future__ import annotations

import logging
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from easydict import EasyDict
from standin_runs import CFGS, Standin, seed
from torch import nn

from pcdet_freeze import openpcdet
from pcdet_freeze.integrations.openpcdet.session import session_of

CONSTANT = "pfe.grid"


@pytest.fixture
def config(standin: Standin) -> Any:
    """Of a detector whose ``pfe`` changes its config and counts its instances; ``pfe`` is frozen."""
    openpcdet.install()
    found = EasyDict(yaml.safe_load((CFGS / "pv_rcnn.yaml").read_text())).MODEL
    found.PFE = EasyDict(NAME="SetAbstraction", MLPS=[[8], [8, 8]])
    found.NOT_TRAIN_IN_MULTI_TASK = ["pfe"]
    return found


def build(standin: Standin, config: Any) -> nn.Module:
    seed()
    dataset = SimpleNamespace(class_names=["Car"], logger=logging.getLogger("standin"))
    return standin.module("pcdet.models").build_network(config, 1, dataset)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def rebuild(model: nn.Module) -> nn.Module:
    session = session_of(model)
    assert session is not None
    return session.rebuild()


def test_p4_the_rebuilt_model_has_the_tensors_of_the_first_one(standin: Standin, config: Any) -> None:
    model = build(standin, config)
    assert CONSTANT in shapes(model)
    assert shapes(rebuild(model)) == shapes(rebuild(model)) == shapes(model)


def test_p4_a_rebuild_changes_neither_the_config_nor_the_counters_of_classes(
    standin: Standin, config: Any
) -> None:
    model = build(standin, config)
    after_first_build, count = deepcopy(config), type(model.pfe).count
    rebuild(model)
    assert config == after_first_build and config.PFE.MLPS == [[8, 8], [8, 8, 8]]
    assert type(model.pfe).count == count == 1


def test_p4_counters_are_those_before_the_first_build_for_a_second_model_too(
    standin: Standin, config: Any
) -> None:
    build(standin, deepcopy(config))
    second = build(standin, config)
    assert CONSTANT not in shapes(second) and type(second.pfe).count == 2
    assert shapes(rebuild(second)) == shapes(second) and type(second.pfe).count == 2


def test_p4_counters_are_restored_when_the_rebuild_fails(standin: Standin, config: Any) -> None:
    model = build(standin, config)
    parts = standin.module("pcdet.models.parts")
    standin.monkeypatch.setattr(parts, "RoIHead", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rebuild(model)
    assert type(model.pfe).count == 1


def test_p4_a_constant_buffer_that_is_in_no_checkpoint_is_no_error(standin: Standin, config: Any) -> None:
    model = build(standin, config)
    weights = {name: value.clone() for name, value in model.state_dict().items() if name != CONSTANT}
    model.load_state_dict(weights, strict=False)
    openpcdet.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_model_without_a_list_is_built_from_the_config_itself(standin: Standin, config: Any) -> None:
    config.NOT_TRAIN_IN_MULTI_TASK = None
    model = build(standin, config)
    assert model.model_cfg is config and config.PFE.MLPS == [[8, 8], [8, 8, 8]]
