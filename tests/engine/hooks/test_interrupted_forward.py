"""Ctrl-C, or any other BaseException, in the middle of a training forward leaves nothing on the model."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from proof_toys import frozen

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.frozen_prefix import FrozenPrefixHook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import set_seed

ERRORS = [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError]
PLACES = ["vfe.1", "head", ""]


class Interrupts(Hook):
    """Raises in the forward after ``steps`` iterations, when the module at ``place`` is called.

    An interrupt comes once, also in the runs of the determinism check.
    """

    def __init__(self, error: type[BaseException], place: str, steps: int = 2) -> None:
        self.error, self.place, self.steps = error, place, steps

    def before_train(self, trainer: Trainer) -> None:
        if self.steps == 0:
            self._arm(trainer)

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.steps:
            self._arm(trainer)

    def _arm(self, trainer: Trainer) -> None:
        target = trainer.model.get_submodule(self.place)

        def stop(module: Any, _: Any) -> None:
            # a copy of the model runs first, to plan the prefix; an error of the code comes in each call
            if module is target and (not self.done or issubclass(self.error, Exception)):
                self.done = True
                raise self.error("stop")

        target.register_forward_pre_hook(PicklableHook(stop))
        self.done = False


def interrupted(
    error: type[BaseException] = KeyboardInterrupt, place: str = "vfe.1", steps: int = 2
) -> Trainer:
    torch.manual_seed(7)
    options = {"ALLOW_RANDOM": True}
    trainer = frozen(ToyModel(), "vfe", hooks=[Interrupts(error, place, steps)], options=options)
    set_seed(1)
    with pytest.raises(error, match="stop"):
        trainer.run()
    return trainer


def patched(model: torch.nn.Module) -> list[str]:
    """Modules whose forward is replaced."""
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


def saved_and_loaded(model: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", PLACES[:2])
@pytest.mark.parametrize("steps", [0, 2])
def test_an_interrupted_forward_leaves_nothing_on_the_model(
    error: type[BaseException], place: str, steps: int
) -> None:
    assert patched(interrupted(error, place, steps).model) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("make_copy", [copy.deepcopy, saved_and_loaded])
def test_a_copy_made_after_an_interrupt_is_a_plain_model_that_trains(
    make_copy: Any, place: str, steps: int
) -> None:
    trainer = interrupted(place=place, steps=steps)
    batch = {"x": torch.randn(4, 4), "y": torch.randn(4)}
    twin, plain = make_copy(trainer.model), ToyModel()
    assert [name for name in patched(twin) if name] == []
    plain.load_state_dict(trainer.model.state_dict())
    assert torch.equal(twin.eval()(batch)[0], plain.eval()(batch)[0])
    twin.head.weight.data += 1
    assert not torch.equal(twin(batch)[0], plain(batch)[0])  # it runs its own weights
    twin.train()(batch)[0]["loss"].backward()
    assert (twin.head.weight.grad is not None and trainer.model.head.weight.grad is None) or steps


@pytest.mark.parametrize("place", PLACES)
def test_the_model_itself_evaluates_as_it_is_written_after_an_interrupt(place: str) -> None:
    model, batch = interrupted(place=place).model, {"x": torch.randn(4, 4)}
    plain = ToyModel()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(batch)[0], plain.eval()(batch)[0])
    assert [name for name in patched(model) if name] == []


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_started_again_after_an_interrupt_trains_on(place: str) -> None:
    trainer = interrupted(place=place)
    before = tensors_of(trainer.model)
    trainer.run()
    after = tensors_of(trainer.model)
    assert trainer.epoch == trainer.epochs and patched(trainer.model) == []
    assert_same_state(*({k: v for k, v in state.items() if k.startswith("vfe")} for state in (before, after)))
    assert not torch.equal(before["head.weight"], after["head.weight"])


class FailingModel(ToyModel):
    """Its forward raises ``error``, in the copy that plans too."""

    error: type[BaseException] | None = None

    def forward(self, batch_dict: Any) -> Any:
        if self.error is not None:
            raise self.error("stop")
        return super().forward(batch_dict)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_f1_a_run_that_is_started_again_plans_its_prefix_again(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = frozen(FailingModel(), "vfe", options={"ALLOW_RANDOM": True})
    monkeypatch.setattr(FailingModel, "error", error)
    with pytest.raises(error, match="stop"):
        trainer.run()
    monkeypatch.setattr(FailingModel, "error", None)
    trainer.run()
    (prefix,) = (hook for hook in trainer.hooks if isinstance(hook, FrozenPrefixHook))
    assert prefix.replanner.plan.prefix == ("vfe",)


@pytest.mark.parametrize("training", [True, False])
def test_the_next_forward_removes_the_hooks_of_the_first_steps_checks(training: bool) -> None:
    trainer = interrupted(steps=0, place="head")
    batch = {"x": torch.randn(4, 4), "y": torch.randn(4)}
    trainer.model.train(training)(batch)
    inside = [module for name, module in trainer.model.named_modules() if name]
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in inside) == 1
