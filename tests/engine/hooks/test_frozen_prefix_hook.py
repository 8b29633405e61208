"""F1 and F5 in a training: planned in the first step, on a copy, and never at work in an evaluation."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from proof_toys import frozen
from torch.utils.data import DataLoader

from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.frozen_prefix import FrozenPrefixHook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.utils.rng import set_seed
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


def trainer_of(hooks: Any = (), fuse: bool | str = True, **more: Any) -> Trainer:
    """ToyModel with a live dropout behind its frozen vfe, so that generators matter."""
    torch.manual_seed(7)
    model = ToyModel()
    model.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    return frozen(model, "vfe", hooks=hooks, options={"FUSE": fuse, "ALLOW_RANDOM": True}, **more)


def run(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The state at the end of a run from a fixed seed."""
    set_seed(1)
    trainer.run()
    return tensors_of(trainer.model)


def fast_hook(trainer: Trainer) -> FrozenPrefixHook:
    return next(hook for hook in trainer.hooks if isinstance(hook, FrozenPrefixHook))


def test_f5_a_training_folds_by_itself_and_says_so_once(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    trainer = trainer_of(logger=logging.getLogger("fast"))
    trainer.run()
    assert fast_hook(trainer).replanner.plan.folds == (("vfe.0", "vfe.1"),)
    assert caplog.text.count("Frozen prefix (under no_grad): vfe.") == 1
    assert caplog.text.count("1 norm layers folded") == 1


def test_f1_planning_and_the_prefix_move_no_bit_of_a_training() -> None:
    plain, fast = trainer_of(fuse=False), trainer_of(fuse=False)
    plain.hooks = [hook for hook in plain.hooks if not isinstance(hook, FrozenPrefixHook)]
    assert_same_state(run(plain), run(fast))
    assert fast_hook(fast).replanner.plan.prefix == ("vfe",)


def test_f5_a_folded_training_ends_where_a_plain_one_does_but_for_rounding() -> None:
    plain, fast = trainer_of(fuse=False), trainer_of(fuse=True)
    torch.testing.assert_close(run(plain), run(fast), rtol=1e-4, atol=1e-6)


class Evaluates(Hook):
    """Keeps what the model gives in eval mode after each step."""

    def __init__(self, batch: Any) -> None:
        self.batch, self.found = batch, []

    def after_step(self, trainer: Trainer) -> None:
        with torch.no_grad():
            self.found.append(trainer.model.vfe.eval()(self.batch))
            trainer.model.eval()
            self.found.append(trainer.model.vfe(self.batch))


def test_f5_an_evaluation_between_steps_is_plain_to_the_bit() -> None:
    watch = Evaluates(torch.randn(3, 4))
    trainer = trainer_of([watch])
    with torch.no_grad():
        before = trainer.model.vfe.eval()(watch.batch)
    trainer.run()
    assert len(watch.found) == 16 and all(torch.equal(before, value) for value in watch.found)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_forward_that_is_broken_off_tells_its_own_error_and_leaves_no_trace(error: Any) -> None:
    class Breaks(Hook):
        def after_step(self, trainer: Trainer) -> None:
            trainer.model.vfe[1].register_forward_pre_hook(stop)

    def stop(module: Any, args: Any) -> None:
        raise error("stop")

    trainer = trainer_of([Breaks()])
    with pytest.raises(error, match="stop"):
        trainer.run()
    trainer.model.vfe[1]._forward_pre_hooks.clear()
    with torch.no_grad():
        trainer.model.eval()(trainer.batch)
    assert not any("forward" in module.__dict__ for module in trainer.model.modules())


def test_r1_a_resumed_folded_run_is_the_unbroken_one_to_the_bit(tmp_path: Path) -> None:
    whole = run(trainer_of())
    run(trainer_of([CheckpointHook(tmp_path, 1, 9)], max_iters=6))
    file = load_checkpoint(sorted(tmp_path.glob("*.pth"))[-1])
    second = trainer_of(seed=3)
    load_model_state(second.model, file["model_state"], "a")
    resume(second, file)
    assert_same_state(whole, run(second))


def test_without_parameters_nothing_of_f_applies() -> None:
    trainer = frozen(ToyModel(), "vfe", options={"PARAMETERS": False})
    assert not any(isinstance(hook, FrozenPrefixHook) for hook in trainer.hooks)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_fuse_is_true_false_or_force(value: Any) -> None:
    with pytest.raises(FreezeError, match="FUSE must be true, false or 'force'"):
        FreezePlan.from_cfg({"MODEL": {"FREEZE": {"FUSE": value}}})
    assert FreezePlan.from_cfg({"MODEL": {"FREEZE": {"FUSE": "force"}}}).fuse == "force"


class DrawsLate:
    """One sample, drawn from numpy's generator when ``turn`` comes, or after a while."""

    def __init__(self) -> None:
        self.begun, self.turn, self.has_drawn = (threading.Event() for _ in range(3))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        self.begun.set()
        self.turn.wait(0.2)
        number = float(np.random.random())
        self.has_drawn.set()
        return number


def test_a_number_that_a_loader_thread_draws_while_the_prefix_is_planned_is_not_drawn_again() -> None:
    trainer, dataset = trainer_of(), DrawsLate()

    def let_it_draw(*_: Any) -> None:
        dataset.turn.set()
        dataset.has_drawn.wait(1)

    trainer.model.vfe.register_forward_pre_hook(let_it_draw)
    set_seed(1)
    thread = threading.Thread(target=lambda: list(DataLoader(dataset, 1)))  # type: ignore[arg-type]
    thread.start()
    dataset.begun.wait()
    fast_hook(trainer).prepare(trainer, {"x": torch.randn(4, 4), "y": torch.randn(4)})
    thread.join()
    drawn = np.random.random()
    set_seed(1)
    assert [np.random.random(), np.random.random()][1] == drawn
