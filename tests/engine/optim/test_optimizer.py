"""Optimizers: OpenPCDet's numbers, and every trainable parameter in exactly one group."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_toy import OPTIM, ToyModel, assert_same_state
from torch import nn

from pcdet_freeze.engine.optim import optimizer as optimizers
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer, parameter_names, split_by_norm
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.tensors import relative_error


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "optim.json").read_text())


@pytest.fixture
def golden_model(reference: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("recipe", reference / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.load_recipe(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)))


def golden_step(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> tuple[float, float]:
    """Loss and gradient norm of step ``i`` of the recorded run."""
    draw = np.random.RandomState(1000 + i)
    x, y = (torch.from_numpy(draw.randn(32, n).astype(np.float32)) for n in (8, 4))
    optimizer.zero_grad()
    loss = ((model(x) - y) ** 2).mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 10)
    optimizer.step()
    return loss.item(), norm.item()


def assert_final(model: nn.Module, final: dict[str, Any]) -> None:
    """All but the bias before the norm layer and the mean with it in: its gradient is rounding noise."""
    for name, value in model.state_dict().items():
        if name in ("0.bias", "1.running_mean"):
            continue
        shape, numbers = final[name]
        assert value.shape == torch.Size(shape)
        assert value.flatten().tolist() == pytest.approx(numbers, rel=2e-5, abs=2e-6), name


def test_adam_onecycle_runs_as_openpcdets(golden: dict[str, Any], golden_model: nn.Module) -> None:
    facts = golden["adam_onecycle_toy"]
    optimizer = build_optimizer(golden_model, facts["optim_cfg"])
    schedule = build_scheduler(optimizer, 20, 20, facts["optim_cfg"])
    for i in range(20):
        assert schedule.apply(optimizer, i) == pytest.approx(facts["lr"][i], rel=1e-12)
        assert optimizer.param_groups[1]["betas"] == (pytest.approx(facts["mom"][i], rel=1e-12), 0.99)
        loss, norm = golden_step(golden_model, optimizer, i)
        assert (loss, norm) == (
            pytest.approx(facts["losses"][i], rel=1e-5), pytest.approx(facts["grad_norms"][i], rel=1e-4)
        )  # fmt: skip
    assert_final(golden_model, facts["final"])


def test_a_constant_rate_runs_as_openpcdets(golden: dict[str, Any], golden_model: nn.Module) -> None:
    facts = golden["optimwrapper_const_lr"]
    cfg = {**golden["adam_onecycle_toy"]["optim_cfg"], "DIV_FACTOR": 1, "MOMS": [0.9, 0.9]}
    optimizer = build_optimizer(golden_model, cfg)
    losses = [golden_step(golden_model, optimizer, i)[0] for i in range(20)]
    assert losses == pytest.approx(facts["losses"], rel=1e-5)
    assert_final(golden_model, facts["final"])


def test_groups_and_their_options_are_openpcdets(golden: dict[str, Any], golden_model: nn.Module) -> None:
    facts = golden["adam_onecycle_toy"]
    optimizer = build_optimizer(golden_model, facts["optim_cfg"])
    assert parameter_names(golden_model, optimizer) == facts["param_groups"]
    for group, wanted in zip(
        optimizer.state_dict()["param_groups"], facts["initial_group_opts"], strict=True
    ):
        assert {key: list(group[key]) if key == "betas" else group[key] for key in wanted} == wanted


def test_the_state_is_plain_adams_and_a_plain_adam_loads_it(golden_model: nn.Module) -> None:
    optimizer = build_optimizer(golden_model, OPTIM)
    golden_step(golden_model, optimizer, 0)
    plain = torch.optim.Adam([{"params": group} for group in split_by_norm(golden_model)])
    plain.load_state_dict(optimizer.state_dict())
    assert_same_state(plain.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_adam_and_sgd_have_openpcdets_options(
    golden: dict[str, Any], golden_model: nn.Module, name: str
) -> None:
    cfg = {**golden["adam_onecycle_toy"]["optim_cfg"], "OPTIMIZER": name}
    group = build_optimizer(golden_model, cfg).state_dict()["param_groups"][0]
    wanted = golden[name]["group_opts"][0]
    assert {key: list(group[key]) if key == "betas" else group[key] for key in wanted} == wanted


class Tokens(nn.Module):
    """Parameters that non-leaf modules own themselves, and one that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.BatchNorm1d(8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("name", ["adam_onecycle", "adam", "sgd"])
def test_every_trainable_parameter_is_in_exactly_one_group(name: str) -> None:
    model = Tokens()
    names = parameter_names(model, build_optimizer(model, {**OPTIM, "OPTIMIZER": name}))
    held = [n for group in names for n in group]
    assert sorted(held) == sorted(n for n, _ in model.named_parameters())
    assert {"token", "attention.in_proj_weight", "first.weight"} <= set(held)


@pytest.mark.parametrize("name", ["adam_onecycle", "adam", "sgd"])
def test_h7_a_frozen_parameter_is_in_no_group_and_does_not_decay(name: str) -> None:
    model = ToyModel()
    model.vfe.requires_grad_(False)
    optimizer = build_optimizer(model, {**OPTIM, "OPTIMIZER": name, "WEIGHT_DECAY": 0.5})
    before = model.vfe[0].weight.clone()
    assert [n for group in parameter_names(model, optimizer) for n in group] == ["head.weight", "head.bias"]
    model.head(model.vfe(torch.randn(4, 4))).sum().backward()
    optimizer.step()
    assert torch.equal(model.vfe[0].weight, before)


def test_an_unknown_optimizer_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="adam_onecycle, adam, sgd"):
        build_optimizer(ToyModel(), {**OPTIM, "OPTIMIZER": "lion"})


@pytest.mark.parametrize("name", ["adam_onecycle", "adam", "sgd"])
def test_r3_lr_scaled_parameters_have_param_groups_divided_by_norm_like_the_others(name: str) -> None:
    model = ToyModel()
    cfg = {**OPTIM, "OPTIMIZER": name}
    lr_scaled = [(["vfe.0.weight", "vfe.1.weight", "vfe.1.bias"], 0.1), (["head.bias"], 0.5)]
    optimizer = build_optimizer(model, cfg, lr_scaled)
    norms = ["vfe.1.weight", "vfe.1.bias"]
    split = [["vfe.0.weight"], norms] if name == "adam_onecycle" else [["vfe.0.weight", *norms]]
    base = [["vfe.0.bias", "head.weight"], []] if name == "adam_onecycle" else [["vfe.0.bias", "head.weight"]]
    assert parameter_names(model, optimizer) == [*base, *split, ["head.bias"]]
    scales = [group.get("lr_scale") for group in optimizer.param_groups]
    assert scales == [*[None] * len(base), *[0.1] * len(split), 0.5]


def trained(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after 20 steps with gradients that do not depend on its weights."""
    torch.manual_seed(0)
    model = ToyModel()
    optimizer = build_optimizer(model, {**OPTIM, "OPTIMIZER": name})
    for _ in range(20):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("name", ["adam_onecycle", "adam", "sgd"])
def test_a_fused_optimizer_differs_from_the_plain_one_by_rounding(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain, optimizer = trained(name)
    assert not any(group["fused"] for group in optimizer.param_groups)  # a CPU keeps the bits of old runs
    monkeypatch.setattr(optimizers, "is_accelerator", lambda value: True)
    fused, optimizer = trained(name)
    assert all(group["fused"] for group in optimizer.param_groups)
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        assert relative_error(a, b) <= 1e-6


def test_a_fused_optimizer_leaves_no_step_out_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "is_accelerator", lambda value: True)
    optimizer = build_optimizer(ToyModel(), OPTIM)
    assert not optimizer._step_supports_amp_scaling  # a GradScaler calls step() only where it counts
