"""P5: each trainable parameter is in one param group and gets gradients in the first steps."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from engine_toy import ToyModel
from grad_scaler import FusedSGD, cpu_grad_scaler
from proof_toys import (
    frozen,
    refusal,
)
from torch import nn

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.freeze_checks import OptimizerGroupsHook
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.checks.optimizer_audit import STEPS, check_groups


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda groups: groups[0]["params"].pop(), "in no group .*: head.bias"),
        (
            lambda groups: groups[1]["params"].append(groups[0]["params"][0]),
            "twice .*: head.weight",
        ),
    ],
)
@pytest.mark.parametrize("entries", [(), ("vfe",)])
def test_p5_a_parameter_must_be_in_exactly_one_group(spoil: Any, message: str, entries: Any) -> None:
    model = ToyModel()
    model.vfe.requires_grad_(False)
    trainer = frozen(model, *entries, hooks=[OptimizerGroupsHook()])
    spoil(trainer.optimizer.param_groups)
    with pytest.raises(FreezeError, match=message):
        trainer.run()


def test_p5_a_frozen_parameter_must_be_in_no_group() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.bias.requires_grad_(False)
    with pytest.raises(FreezeError, match=r"frozen, but in a group .*: bias"):
        check_groups(model, optimizer)


def many_steps(model: nn.Module, **more: Any) -> Any:
    return frozen(model, "vfe", epochs=6, **more)


class Spare(ToyModel):
    """Has one more weight, whose gradient a hook controls."""

    def __init__(self, gradient: Any = None) -> None:
        super().__init__()
        self.spare = nn.Linear(1, 1, bias=False)
        self.gradient = gradient

    def forward(self, batch: dict[str, Any]) -> Any:
        batch = {**batch, "factor": 1 + 0 * self.spare.weight.sum()}
        return super().forward(batch)


class RemovesGradients(Hook):
    """Sets the gradient of the spare weight to None before each step for which ``when`` is true."""

    def __init__(self, when: Any) -> None:
        self.when = when

    def before_train(self, trainer: Any) -> None:
        def remove(*_: Any) -> None:
            if self.when(trainer.iteration):
                trainer.model.spare.weight.grad = None

        trainer.optimizer.register_step_pre_hook(remove)


def test_p5_no_gradient_in_twenty_steps_is_an_error() -> None:
    trainer = many_steps(Spare(), hooks=[RemovesGradients(lambda step: True)])
    with pytest.raises(FreezeError, match=r"spare\.weight .* no gradient in any of 20 steps"):
        trainer.run()
    assert trainer.iteration == STEPS - 1


def test_p5_a_shorter_run_is_audited_at_its_end() -> None:
    hooks = [RemovesGradients(lambda step: True)]
    with pytest.raises(FreezeError, match="in any of 3 steps"):
        many_steps(Spare(), hooks=hooks, max_iters=3).run()


def test_p5_gradients_that_are_zero_or_sometimes_missing_are_notes(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("audited")
    many_steps(Spare(), logger=logger).run()
    assert "the gradient of spare.weight was zero in all of 20 steps" in caplog.text
    many_steps(Spare(), hooks=[RemovesGradients(lambda step: step == 2)], logger=logger).run()
    assert "spare.weight had no gradient in 1 of 20 steps" in caplog.text


def test_p5_a_frozen_parameter_with_a_gradient_is_an_error() -> None:
    class GivesGradient(RemovesGradients):
        def before_train(self, trainer: Any) -> None:
            weight = trainer.model.vfe[0].weight

            def give(*_: Any) -> None:
                weight.grad = torch.zeros_like(weight)

            trainer.optimizer.register_step_pre_hook(give)

    message = refusal(many_steps(ToyModel(), hooks=[GivesGradient(None)]))
    assert "vfe.0.weight is frozen, but has a gradient" in message


def test_p5_steps_that_amp_skips_do_not_count() -> None:
    """Five steps overflow; the error comes after twenty others."""

    class Overflows(Hook):
        def before_train(self, trainer: Any) -> None:
            trainer.clip_norm = None
            trainer.scaler = cpu_grad_scaler(2.0)
            weight = trainer.model.head.weight
            weight.register_hook(lambda grad: grad * (float("inf") if trainer.iteration < 5 else 1))

    trainer = frozen(
        Spare(), "vfe", epochs=7, hooks=[Overflows(), RemovesGradients(lambda step: True)], optimizer="sgd"
    )
    with pytest.raises(FreezeError, match="in any of 20 steps"):
        trainer.run()
    assert trainer.iteration == 5 + STEPS - 1


def test_p5_steps_that_a_fused_optimizer_skips_do_not_count() -> None:
    """A GradScaler calls its step() in any case, with the verdict in ``found_inf``."""

    class Overflows(Hook):
        def before_train(self, trainer: Any) -> None:
            def set_verdict(optimizer: Any, *_: Any) -> None:
                optimizer.found_inf = torch.tensor(float(trainer.iteration < 5))

            trainer.optimizer = FusedSGD(trainer.model.parameters())
            trainer.optimizer.register_step_pre_hook(set_verdict)

    hooks = [Overflows(), RemovesGradients(lambda step: True)]
    trainer = frozen(Spare(), "vfe", epochs=7, hooks=hooks, optimizer="sgd")
    with pytest.raises(FreezeError, match="in any of 20 steps"):
        trainer.run()
    assert trainer.iteration == 5 + STEPS - 1


def test_p5_a_new_optimizer_is_audited_again() -> None:
    class Rebuilds(Hook):
        def before_epoch(self, trainer: Any) -> None:
            if trainer.epoch == 1:
                trainer.rebuild(torch.optim.SGD([trainer.model.head.weight], lr=0.1))

    with pytest.raises(FreezeError, match=r"in no group .*: head\.bias"):
        frozen(ToyModel(), "vfe", hooks=[Rebuilds()]).run()
