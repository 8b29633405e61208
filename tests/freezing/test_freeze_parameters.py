"""H7, H9: frozen parameters do not move, whatever the optimizer has collected, and gradients pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from freeze_toys import Detector, same_state, state_bits, train_step
from torch import nn

from pcdet_freeze import FreezeError, FreezePlan, freeze, unfreeze
from pcdet_freeze.engine.optim.optimizer import build_optimizer

LIST = ["vfe", "backbone_2d.blocks"]
TAKES_NAMES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
"""whether torch's optimizers take named parameters"""


class Wrapper:
    """An optimizer wrapper, as fastai's or mmengine's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)

    def step(self) -> None:
        """Decay by hand, as adam_onecycle does."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.99)
        self.optimizer.step()


OPTIMIZERS: list[Callable[[Any], Any]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    lambda p: Wrapper(torch.optim.Adam(p, lr=0.1)),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("stale_grad", [False, True])
def test_h7_freezing_in_the_middle_of_a_run_stops_every_movement(make, stale_grad: bool) -> None:
    model = Detector()
    optimizer = make(model.parameters())
    for seed in range(3):
        train_step(model, optimizer, seed)
    if stale_grad:
        model.vfe[0].weight.grad = torch.ones_like(model.vfe[0].weight)
    handle = freeze(model, LIST, optimizer=optimizer)
    bits, live = state_bits(model.vfe), model.dense_head.weight.detach().clone()
    for seed in range(3):
        train_step(model, optimizer, seed)
    assert same_state(model.vfe, bits) and not torch.equal(model.dense_head.weight, live)
    handle.verify()


@pytest.mark.parametrize("set_to_none", [False, True])
def test_h7_without_the_optimizer_a_step_does_not_move_them_either(set_to_none: bool) -> None:
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    train_step(model, optimizer)
    handle = freeze(model, LIST)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        model.train()(torch.randn(6, 4)).sum().backward()
        optimizer.step()
    handle.verify()


def test_h7_parameters_and_their_state_leave_every_group() -> None:
    model = Detector()
    groups = [{"params": list(model.vfe.parameters())}, {"params": list(model.backbone_2d.parameters())}]
    optimizer = torch.optim.Adam(groups)
    train_step(model, optimizer)
    handle = freeze(model, LIST, optimizer)
    gone = {id(p) for p in handle.parameters()}
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 12]
    assert not any(id(p) in gone for group in optimizer.param_groups for p in group["params"])
    assert not any(id(p) in gone for p in optimizer.state) and len(optimizer.state) == 12
    assert all(p.grad is None and not p.requires_grad for p in handle.parameters())


def test_h7_groups_stay_so_that_a_scheduler_goes_on() -> None:
    model = Detector()
    optimizer = torch.optim.SGD(
        [{"params": model.vfe.parameters()}, {"params": model.dense_head.parameters()}], lr=1.0
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    freeze(model, ["vfe"], optimizer)
    train_step(model, optimizer)
    scheduler.step()
    assert [round(group["lr"], 3) for group in optimizer.param_groups] == [0.1, 0.1]


def test_h7_names_in_the_groups_go_with_their_parameters() -> None:
    """torch 2.6 takes named parameters and keeps their names; for older ones the names are added by hand."""
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    group = optimizer.param_groups[0]
    group["param_names"] = [name for name, _ in model.named_parameters()]
    freeze(model, ["vfe"], optimizer)
    assert group["param_names"] == [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(group["params"]) == len(group["param_names"]) == len(list(model.parameters())) - 3


@pytest.mark.parametrize("named", [False, *([True] if TAKES_NAMES else [])])
def test_h7_an_optimizer_of_named_parameters_is_one_of_parameters(named: bool) -> None:
    """Optimizers take named parameters since torch 2.6."""
    model = Detector()
    optimizer = torch.optim.SGD(model.named_parameters() if named else model.parameters(), lr=0.1)
    freeze(model, ["vfe"], optimizer)
    group = optimizer.param_groups[0]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]
    assert ("param_names" in group) == named and "vfe.0.weight" not in group.get("param_names", ())


def test_h7_something_that_is_no_optimizer_is_an_error_before_anything_changes() -> None:
    model = Detector()
    with pytest.raises(FreezeError, match="optimizer must be a torch optimizer"):
        freeze(model, LIST, optimizer="adam")
    assert all(p.requires_grad for p in model.parameters())


def test_h7_parameters_false_leaves_the_optimizer_alone() -> None:
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freeze(model, FreezePlan(tuple(LIST), parameters=False), optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_h9_gradients_flow_through_a_frozen_module_to_a_trainable_one_before_it() -> None:
    model = Detector()
    freeze(model, ["backbone_2d", "dense_head"])
    train_step(model)
    assert model.vfe[0].weight.grad is not None and model.vfe[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.backbone_2d.parameters())


def test_h9_the_gradient_is_that_of_the_module_in_eval_mode() -> None:
    model, twin = Detector(), Detector()
    twin.load_state_dict(model.state_dict())
    freeze(model, ["backbone_2d"])
    train_step(model)
    twin.train()
    twin.backbone_2d.eval()
    twin(torch.randn(6, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert torch.equal(model.vfe[0].weight.grad, twin.vfe[0].weight.grad)


def test_h7_a_frozen_attention_in_projection_and_bare_parameters_are_frozen() -> None:
    model = nn.Module()
    model.part = nn.Module()
    model.part.token = nn.Parameter(torch.zeros(3))
    model.part.attention = nn.MultiheadAttention(4, 2)
    handle = freeze(model, ["part"])
    assert len(handle.parameters()) == 5 and not any(p.requires_grad for p in model.parameters())
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("given", [False, True])
def test_h7_our_adam_onecycle_does_not_decay_what_is_frozen_in_the_middle_of_a_run(given: bool) -> None:
    model = Detector()
    cfg = {"OPTIMIZER": "adam_onecycle", "LR": 0.1, "WEIGHT_DECAY": 0.5, "MOMS": [0.9, 0.8], "DIV_FACTOR": 10}
    optimizer = build_optimizer(model, cfg)
    train_step(model, optimizer)
    handle = freeze(model, LIST, optimizer if given else None)
    live = model.dense_head.weight.detach().clone()
    for seed in range(3):
        train_step(model, optimizer, seed)
    handle.verify()
    assert not torch.equal(model.dense_head.weight, live)
