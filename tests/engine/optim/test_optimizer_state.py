"""Optimizer state by name: kept, dropped and new; OpenPCDet's order; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_toy import OPTIM, ToyModel, assert_same_state
from torch import nn

from pcdet_freeze.engine.optim import optimizer as optimizers
from pcdet_freeze.engine.optim.optimizer import build_optimizer, parameter_names
from pcdet_freeze.engine.optim.optimizer_state import carry_state, load_optimizer_state
from pcdet_freeze.errors import CheckpointError

KINDS = ["adam_onecycle", "adam", "sgd"]


def made(model: nn.Module, name: str = "adam_onecycle", lr_scaled: Any = ()) -> torch.optim.Optimizer:
    return build_optimizer(model, {**OPTIM, "OPTIMIZER": name}, lr_scaled)


def stepped(model: nn.Module, name: str = "adam_onecycle") -> torch.optim.Optimizer:
    optimizer = made(model, name)
    model.head(model.vfe(torch.randn(4, 4))).sum().backward()
    optimizer.step()
    return optimizer


def state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}


@pytest.mark.parametrize("name", KINDS)
def test_r2_what_was_frozen_since_is_dropped_and_the_rest_keeps_its_state(name: str) -> None:
    model = ToyModel()
    old = stepped(model, name)
    before = state_by_name(model, old)
    names = parameter_names(model, old)
    model.vfe.requires_grad_(False)
    new = made(model, name)
    found = load_optimizer_state(model, new, old.state_dict(), names)
    assert (found.kept, found.new) == (("head.weight", "head.bias"), ())
    assert sorted(found.dropped) == ["vfe.0.bias", "vfe.0.weight", "vfe.1.bias", "vfe.1.weight"]
    assert_same_state(state_by_name(model, new), {n: before[n] for n in ("head.weight", "head.bias")})


@pytest.mark.parametrize("name", KINDS)
def test_r2_what_trains_since_starts_fresh(name: str) -> None:
    model = ToyModel()
    model.vfe.requires_grad_(False)
    old = stepped(model, name)
    names = parameter_names(model, old)
    model.vfe.requires_grad_(True)
    new = made(model, name)
    found = load_optimizer_state(model, new, old.state_dict(), names)
    assert len(found.new) == 4 and not found.dropped
    assert set(state_by_name(model, new)) == {"head.weight", "head.bias"}
    model.head(model.vfe(torch.randn(4, 4))).sum().backward()
    new.step()
    steps = {n: int(entry["step"]) for n, entry in state_by_name(model, new).items() if "step" in entry}
    assert steps == (
        {} if name == "sgd" else {n: 1 + n.startswith("head") for n in dict(model.named_parameters())}
    )


def test_r2_the_diff_names_what_was_kept_dropped_and_new() -> None:
    model = ToyModel()
    model.head.requires_grad_(False)
    old = stepped(model)
    names = parameter_names(model, old)
    model.requires_grad_(True)
    model.vfe[0].requires_grad_(False)
    table = load_optimizer_state(model, made(model), old.state_dict(), names).table()
    assert "kept         2  vfe.1.weight, vfe.1.bias" in table
    assert "dropped      2  vfe.0.weight, vfe.0.bias" in table
    assert "new          2  head.weight, head.bias" in table


def test_r2_another_grouping_of_the_same_parameters_keeps_every_state() -> None:
    model = ToyModel()
    old = stepped(model)
    new = made(model, lr_scaled=[(["vfe.0.weight"], 0.1)])
    found = load_optimizer_state(model, new, old.state_dict(), parameter_names(model, old))
    assert found.is_whole
    assert_same_state(state_by_name(model, new), state_by_name(model, old))
    assert [group.get("lr_scale") for group in new.param_groups] == [None, None, 0.1]


def test_r2_the_learning_rate_scale_is_the_configs_and_not_the_checkpoints() -> None:
    model = ToyModel()
    old, new = (made(model, lr_scaled=[(["head.bias"], scale)]) for scale in (0.1, 0.5))
    load_optimizer_state(model, new, old.state_dict(), parameter_names(model, old))
    assert new.param_groups[-1]["lr_scale"] == 0.5


class Owner(ToyModel):
    """A module with children owns a parameter itself, which OpenPCDet's adam_onecycle passes over."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize("name", KINDS)
def test_r2_a_state_without_names_is_mapped_in_openpcdets_order_under_a_list_too(name: str) -> None:
    model = ToyModel()
    old = stepped(model, name)
    before = state_by_name(model, old)
    model.vfe.requires_grad_(False)
    new = made(model, name)
    found = load_optimizer_state(model, new, old.state_dict())
    assert found.kept == ("head.weight", "head.bias") and len(found.dropped) == 4
    assert_same_state(state_by_name(model, new), {n: before[n] for n in found.kept})


def test_r2_a_state_without_names_of_the_leaf_modules_alone_is_mapped_too() -> None:
    model = Owner()
    model.token.requires_grad_(False)
    old = stepped(model)
    model.token.requires_grad_(True)
    found = load_optimizer_state(model, made(model), old.state_dict())
    assert found.new == ("token",) and len(found.kept) == 6


@pytest.mark.parametrize("name", KINDS)
def test_r2_a_state_without_names_is_loaded_whole_where_all_trains(name: str) -> None:
    model = ToyModel()
    old, new = stepped(model, name), made(model, name)
    assert load_optimizer_state(model, new, old.state_dict()).is_whole
    assert_same_state(new.state_dict(), old.state_dict())


def refusal(model: nn.Module, new: torch.optim.Optimizer, state: dict[str, Any], *more: Any) -> str:
    """The message; nothing was loaded."""
    with pytest.raises(CheckpointError, match="--pretrained_model") as caught:
        load_optimizer_state(model, new, state, *more)
    assert new.state_dict()["state"] == {}
    return str(caught.value)


def test_r2_a_state_without_names_of_a_part_of_the_model_is_refused() -> None:
    model = ToyModel()
    model.vfe.requires_grad_(False)
    state = stepped(model).state_dict()
    model.requires_grad_(True)
    text = refusal(model, made(model), state)
    assert "stores no parameter names" in text and "[2, 0] parameters" in text and "[4, 2]" in text


def test_r2_a_state_without_names_is_refused_where_a_shape_differs() -> None:
    model = ToyModel()
    state = stepped(model).state_dict()
    state["state"][2]["exp_avg"] = torch.zeros(7, 7)
    assert "exp_avg of head.weight has shape (7, 7)" in refusal(model, made(model), state)


def test_r2_a_state_with_names_is_refused_where_a_shape_or_a_name_differs() -> None:
    model = ToyModel()
    old = stepped(model)
    names, state = parameter_names(model, old), old.state_dict()
    renamed = [["encoder.weight", *names[0][1:]], names[1]]
    assert "not in this model: encoder.weight" in refusal(model, made(model), state, renamed)
    assert "names for [4, 1]" in refusal(model, made(model), state, [names[0], names[1][:1]])
    state["state"][0]["exp_avg"] = torch.zeros(7)
    assert "exp_avg of vfe.0.weight" in refusal(model, made(model), state, names)


def test_r2_a_state_of_another_kind_of_optimizer_is_refused() -> None:
    model = ToyModel()
    adam = stepped(model, "adam")
    names, state = parameter_names(model, adam), adam.state_dict()
    text = refusal(model, made(model, "sgd"), state, names)
    assert "optimizer with betas where this one has momentum" in text
    text = refusal(model, made(model), state, names, "Adam")
    assert "Adam where OPTIMIZATION.OPTIMIZER needs DecoupledAdam" in text
    assert "[6] parameters" in refusal(model, made(model), state)


def test_r3_state_is_carried_over_by_parameter_and_the_entering_ones_start_fresh() -> None:
    model = ToyModel()
    model.vfe.requires_grad_(False)
    old = stepped(model)
    model.vfe.requires_grad_(True)
    new = made(model, lr_scaled=[([n for n, _ in model.vfe.named_parameters("vfe")], 0.1)])
    assert carry_state(old, new) == (2, 4)
    assert_same_state(state_by_name(model, new), state_by_name(model, old))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("was_fused", [True, False])
def test_r1_whether_an_optimizer_is_fused_depends_on_the_device_and_not_on_the_checkpoint(
    name: str, was_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ToyModel()
    monkeypatch.setattr(optimizers, "is_accelerator", lambda value: was_fused)
    old = stepped(model, name)
    monkeypatch.setattr(optimizers, "is_accelerator", lambda value: not was_fused)
    new = made(model, name)
    load_optimizer_state(model, new, old.state_dict(), parameter_names(model, old))
    assert all(bool(group["fused"]) is not was_fused for group in new.param_groups)
    assert_same_state(state_by_name(model, new), state_by_name(model, old))
    model.head(model.vfe(torch.randn(4, 4))).sum().backward()
    new.step()
