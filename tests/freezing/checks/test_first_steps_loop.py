"""The checks of the first steps in a plain training loop, without a trainer."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from engine_toy import ToyModel
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.checks.first_steps import FirstSteps

LOGGER = logging.getLogger("first_steps")


def batch() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 4), "y": torch.randn(4)}


class Loop:
    """A training loop of the user's own."""

    def __init__(
        self, model: nn.Module, optimizer: Any = torch.optim.SGD, without_gradient: str = ""
    ) -> None:
        self.model = model.train()
        self.handle = freeze(model, ["vfe"])
        self.optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=0.1)
        if without_gradient:
            parameter = model.get_parameter(without_gradient)
            self.optimizer.register_step_pre_hook(lambda *_: setattr(parameter, "grad", None))
        self.checks = FirstSteps(LOGGER)
        self.checks.watch(self.handle, self.model, self.optimizer)

    def step(self) -> None:
        self.optimizer.zero_grad()
        output = self.model(batch=batch())
        loss = output if torch.is_tensor(output) else output[0]["loss"]
        loss.backward()
        self.optimizer.step()

    def hooks(self) -> list[Any]:
        """Hooks of the checks on the model and the optimizer."""
        of_model = self.model._forward_hooks
        of_optimizer = self.optimizer._optimizer_step_pre_hooks | self.optimizer._optimizer_step_post_hooks
        return [*of_model.values(), *of_optimizer.values()]


class UnusedBranch(ToyModel):
    """A branch that the loss does not depend on; ``plain``: the forward returns the loss tensor alone."""

    plain = False

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 2)

    def forward(self, batch: dict[str, Any]) -> Any:
        self.branch(batch["x"])
        output = super().forward(batch)
        return output[0]["loss"] if self.plain else output


class SteppedTwice(torch.optim.SGD):
    """Its ``step`` calls that of its parent class, and so the step hooks of both."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


def test_a_correct_loop_passes_and_no_hook_remains() -> None:
    loop = Loop(ToyModel())
    assert loop.hooks()
    for _ in range(3):
        loop.step()
    loop.checks.finish()
    assert loop.hooks() == []


def test_h11_an_unused_branch_stops_the_loop_after_its_first_forward() -> None:
    loop = Loop(UnusedBranch())
    with pytest.raises(FreezeError, match="add 'branch'"):
        loop.step()
    assert loop.model.branch.weight.grad is None and loop.model.head.weight.grad is None


def test_h11_an_output_without_a_loss_is_checked_after_the_backward() -> None:
    model = UnusedBranch()
    model.plain = True
    loop = Loop(model)
    before = model.head.weight.detach().clone()
    with pytest.raises(FreezeError, match="add 'branch'"):
        loop.step()
    assert model.head.weight.grad is not None and torch.equal(model.head.weight, before)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, SteppedTwice])
def test_p5_each_step_is_audited_once(optimizer: Any) -> None:
    loop = Loop(ToyModel(), optimizer, without_gradient="head.bias")
    for _ in range(3):
        loop.step()
    with pytest.raises(FreezeError, match=r"head\.bias .* in any of 3 steps"):
        loop.checks.finish()


def test_without_an_optimizer_only_the_forward_is_checked() -> None:
    loop = Loop(UnusedBranch())
    loop.checks.stop()
    loop.checks.watch(loop.handle, loop.model, None)
    with pytest.raises(FreezeError, match="add 'branch'"):
        loop.step()


def test_stop_in_the_middle_of_a_forward_removes_all_hooks() -> None:
    class Interrupted(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            self.vfe(batch["x"])
            raise KeyboardInterrupt("by the user")

    loop = Loop(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        loop.step()
    loop.checks.stop()
    assert loop.hooks() == [] and not any(m._forward_hooks for m in loop.model.modules())
