"""Trainer.run() after Ctrl-C: the interrupted iteration is repeated, and hooks start again."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from engine_toy import ToyData, ToyModel, ToySampler, assert_same_state, tensors_of, toy_trainer
from freeze_runs import cfg_of, frozen_trainer
from torch import nn
from torch.utils.data import DataLoader

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.optim.loss_scaler import new_scaler, without_pending_step
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError

RANDOM = {"ALLOW_RANDOM": True}


class InterruptsForward(ToyModel):
    """Ctrl-C inside the fourth training forward, once; without the dropout, a step needs no generator."""

    def __init__(self) -> None:
        super().__init__()
        self.vfe = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.calls, self.at = 0, 4

    def forward(self, batch: dict[str, Any]) -> Any:
        self.calls += self.training
        features = self.vfe(batch["x"])
        if self.calls == self.at and self.training:
            self.calls = self.at = 10**9
            raise KeyboardInterrupt
        loss = ((self.head(features).squeeze(1) - batch["y"]) ** 2).mean()
        return ({"loss": loss}, {}, {}) if self.training else (features, {})


class InterruptsAfterStep(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration: int | None = iteration

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.iteration:
            self.iteration = None
            raise KeyboardInterrupt


class Records(Hook):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def before_train(self, trainer: Trainer) -> None:
        self.calls.append("before_train")

    def after_step(self, trainer: Trainer) -> None:
        self.calls.append(f"step {trainer.iteration}")

    def on_exception(self, trainer: Trainer) -> None:
        self.calls.append("on_exception")


def interrupted(trainer: Trainer) -> Trainer:
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    return trainer


def uninterrupted(model: InterruptsForward) -> InterruptsForward:
    model.at = -1
    return model


def test_an_interrupted_forward_does_not_count_and_is_repeated() -> None:
    records = Records()
    trainer = interrupted(toy_trainer([records], model=InterruptsForward(), epochs=1))
    assert (trainer.epoch, trainer.offset, trainer.iteration) == (0, 3, 3)
    assert trainer.model.global_step.item() == 3
    trainer.run()
    steps = ["before_train", "step 1", "step 2", "step 3", "on_exception", "before_train", "step 4"]
    assert records.calls == steps and trainer.epoch == 1


@pytest.mark.parametrize("iteration", [1, 4, 6, 8])
def test_a_run_that_continues_trains_as_one_that_was_not_interrupted(iteration: int) -> None:
    whole = toy_trainer()
    whole.run()
    trainer = interrupted(toy_trainer([InterruptsAfterStep(iteration)]))
    trainer.run()
    assert_same_state(tensors_of(trainer.model), tensors_of(whole.model))
    assert (trainer.epoch, trainer.iteration) == (2, 8)


def test_a_run_interrupted_in_a_forward_ends_as_the_whole_one() -> None:
    torch.manual_seed(0)
    model = InterruptsForward()
    state = tensors_of(model)
    trainer = interrupted(toy_trainer(model=model))
    trainer.run()
    twin = uninterrupted(InterruptsForward())
    twin.load_state_dict(state)
    whole = toy_trainer(model=twin)
    whole.run()
    assert_same_state(tensors_of(trainer.model), tensors_of(whole.model))


def test_without_a_sampler_the_first_batches_are_skipped() -> None:
    seen: list[float] = []

    class Sees(Hook):
        def after_step(self, trainer: Trainer) -> None:
            seen.append(float(trainer.batch["y"][0]))

    trainer = toy_trainer([Sees(), InterruptsAfterStep(3)], epochs=1)
    trainer.loader, trainer.sampler = DataLoader(ToyData(), batch_size=2), None
    interrupted(trainer).run()
    assert seen == [float(batch["y"][0]) for batch in trainer.loader]


def test_workers_are_shut_down_by_an_interrupt() -> None:
    before = set(multiprocessing.active_children())
    trainer = toy_trainer([InterruptsAfterStep(1)])
    trainer.loader = DataLoader(ToyData(), batch_size=2, sampler=ToySampler(8, 2), num_workers=2)
    trainer.sampler = trainer.loader.sampler
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.run()
    assert caught.value is not None and set(multiprocessing.active_children()) <= before
    trainer.run()
    assert trainer.epoch == 2


def test_persistent_workers_serve_the_run_that_continues() -> None:
    trainer = toy_trainer([InterruptsAfterStep(1)])
    trainer.loader = DataLoader(
        ToyData(), batch_size=2, sampler=ToySampler(8, 2), num_workers=1, persistent_workers=True
    )
    trainer.sampler = None
    interrupted(trainer).run()
    assert trainer.epoch == 2


def test_a_stopped_run_continues() -> None:
    class StopsOnce(Hook):
        done = False

        def after_step(self, trainer: Trainer) -> None:
            trainer.stopped, self.done = not self.done, True

    trainer = toy_trainer([StopsOnce()])
    trainer.run()
    assert trainer.iteration == 1
    trainer.run()
    assert trainer.iteration == 8


def test_a_longer_max_iters_continues() -> None:
    trainer = toy_trainer(max_iters=3)
    trainer.run()
    trainer.max_iters = 5
    trainer.run()
    assert trainer.iteration == 5


def test_an_interrupted_forward_leaves_the_modules_own_forwards() -> None:
    trainer = frozen_trainer(cfg=cfg_of("vfe", **RANDOM), model=InterruptsForward())
    before = hooks_on(trainer.model)
    interrupted(trainer)
    assert not any("forward" in vars(module) for module in trainer.model.modules())
    assert hooks_on(trainer.model) == before
    trainer.run()
    assert trainer.epoch == 2


def hooks_on(model: nn.Module) -> list[int]:
    """How many forward hooks and pre-hooks each module has."""
    return [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]


def test_the_certificate_is_not_renewed_over_a_changed_state() -> None:
    trainer = interrupted(frozen_trainer([InterruptsAfterStep(3)], cfg_of("vfe", **RANDOM)))
    with torch.no_grad():
        trainer.model.vfe[0].weight[0, 0] += 1
    with pytest.raises(CertificateError, match=r"the run continues at iteration 3.*\n.*\n.*vfe.0.weight"):
        trainer.run()


def test_iterations_before_an_interrupt_are_saved_at_the_end(tmp_path: Any) -> None:
    trainer = interrupted(toy_trainer([InterruptsAfterStep(3), CheckpointHook(tmp_path)], epochs=1))
    trainer.max_iters = 3
    trainer.run()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch_1.pth"]


@pytest.mark.parametrize("enabled", [False, *([True] if hasattr(torch.amp, "GradScaler") else [])])
def test_a_scaler_that_was_interrupted_between_unscale_and_update_can_step_again(enabled: bool) -> None:
    """torch 2.2 has a scaler for CUDA only."""
    model = nn.Linear(2, 1)
    optimizer, device = torch.optim.SGD(model.parameters(), 0.1), torch.device("cpu")
    scaler = new_scaler(device, enabled)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    scaler.unscale_(optimizer)
    after = without_pending_step(scaler, device)
    assert after.state_dict() == scaler.state_dict()
    after.scale(model(torch.ones(1, 2)).sum()).backward()
    after.unscale_(optimizer)
    after.step(optimizer)


def test_two_trainings_in_one_process_do_not_touch_each_other() -> None:
    alone = toy_trainer(seed=1)
    alone.run()
    first = interrupted(toy_trainer([InterruptsAfterStep(3)]))
    second = toy_trainer(seed=1)
    second.run()
    first.run()
    assert_same_state(tensors_of(second.model), tensors_of(alone.model))
