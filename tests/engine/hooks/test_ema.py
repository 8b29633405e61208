"""OPTIMIZATION.EMA: averages of the weights beside them, in checkpoints, evaluations and later stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from freeze_runs import SaveEach, cfg_of, frozen_trainer, phase, resumed
from torch.utils._python_dispatch import TorchDispatchMode

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.ema import EmaHook
from pcdet_freeze.engine.hooks.evaluation import EvaluationHook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

DECAY = 0.75


class ByHand(Hook):
    """The same average, computed from the weights after each step."""

    def __init__(self) -> None:
        self.averages: dict[str, torch.Tensor] = {}

    def after_step(self, trainer: Trainer) -> None:
        now = tensors_of(trainer.model)
        for name, value in now.items():
            before = self.averages.get(name)
            if before is not None and value.is_floating_point():
                value = DECAY * before + (1 - DECAY) * value
            self.averages[name] = value


def test_it_is_the_average_of_the_weights_after_each_step() -> None:
    by_hand = ByHand()
    trainer = frozen_trainer([EmaHook(DECAY), by_hand], cfg_of())
    trainer.run()
    found = trainer.averaged.state_dict()
    assert found.keys() == by_hand.averages.keys()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in by_hand.averages.items())
    assert not torch.equal(found["head.weight"], trainer.model.head.weight)


def test_h5_frozen_tensors_are_their_own_average_and_the_training_is_as_without_it() -> None:
    trainer, plain = frozen_trainer([EmaHook(DECAY)]), frozen_trainer()
    start = tensors_of(trainer.model)
    for each in (trainer, plain):
        each.run()
    assert_same_state(tensors_of(trainer.model), tensors_of(plain.model))
    frozen = {name: value for name, value in trainer.averaged.state_dict().items() if name.startswith("vfe.")}
    assert_same_state(frozen, {name: start[name] for name in frozen})


class HostCopies(TorchDispatchMode):
    """Operations that read a tensor of the host and write one of a device: the host waits for both."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {value.device.type for value in args if isinstance(value, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.device.type == "meta" and "cpu" in given:
            self.found.append(str(func))
        return out


def test_the_averages_of_a_model_on_a_device_need_no_copy_from_the_host() -> None:
    model = ToyModel().to("meta")
    trainer: Any = SimpleNamespace(model=model, averaged=None, resumed={})
    hook = EmaHook(DECAY)
    hook.before_train(trainer)
    with HostCopies() as copies:
        for _ in range(3):
            hook.after_step(trainer)
    assert copies.found == []


@pytest.mark.parametrize("stop", ["it2", "epoch1", "it7"])
def test_r1_a_resumed_average_ends_as_one_that_was_not_interrupted(tmp_path: Path, stop: str) -> None:
    cfg = cfg_of("vfe", SCHEDULE=[phase(1, "vfe.1")])
    whole = frozen_trainer([EmaHook(DECAY), SaveEach(tmp_path)], cfg)
    whole.run()
    again = resumed(tmp_path / f"{stop}.pth", cfg, [EmaHook(DECAY)])
    again.run()
    assert_same_state(whole.averaged.state_dict(), again.averaged.state_dict())
    assert_same_state(tensors_of(whole.model), tensors_of(again.model))


def test_a_checkpoint_holds_weights_and_the_averages_that_differ_from_them(tmp_path: Path) -> None:
    trainer = frozen_trainer([EmaHook(DECAY), SaveEach(tmp_path)])
    trainer.run()
    saved = load_checkpoint(tmp_path / "epoch2.pth")
    assert_same_state(dict(saved["model_state"]), tensors_of(trainer.model))
    assert_same_state(trained_weights(saved), dict(trainer.averaged.state_dict()))
    assert {name.partition(".")[0] for name in saved[CHECKPOINT_KEY]["ema"]["state"]} == {"head"}


def test_an_evaluation_sees_the_averages(tmp_path: Path) -> None:
    seen: list[Any] = []
    hook = EvaluationHook(lambda model, epoch: seen.append(tensors_of(model)), tmp_path)
    trainer = frozen_trainer([EmaHook(DECAY), hook])
    trainer.run()
    assert_same_state(seen, [tensors_of(trainer.averaged)])


@pytest.mark.parametrize(
    "state", [{"head.weight": torch.zeros(1)}, {"tail": torch.zeros(1)}, {"head.bias": 1}, 3]
)
def test_averages_that_are_not_of_the_weights_are_an_error(state: Any) -> None:
    ours = {"ema": {"updates": 1, "state": state}}
    with pytest.raises(CheckpointError, match=r"OPTIMIZATION\.EMA"):
        trained_weights({"model_state": ToyModel().state_dict(), CHECKPOINT_KEY: ours})
