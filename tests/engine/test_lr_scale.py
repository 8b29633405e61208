"""FREEZE.LR_SCALE: modules that train with another learning rate from the first epoch on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from freeze_runs import SaveEach, cfg_of, frozen_trainer, phase, resumed

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.optimizer import parameter_names
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.lr_scale import describe_lr_scale, scaled_parameters


class Rates(Hook):
    """The multiple of the learning rate of each parameter, after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def after_step(self, trainer: Trainer) -> None:
        names = parameter_names(trainer.model, trainer.optimizer)
        groups = zip(names, trainer.optimizer.param_groups, strict=True)
        self.seen.append({name: group["lr"] / trainer.lr for own, group in groups for name in own})


@pytest.mark.parametrize("optimizer", ["adam_onecycle", "adam", "sgd"])
def test_r3_a_module_trains_with_its_multiple_of_the_learning_rate_without_a_list(optimizer: str) -> None:
    rates = Rates()
    cfg = cfg_of(LR_SCALE={"vfe": 0.1, "vfe.1": 0.5})
    frozen_trainer([rates], cfg, optimizer=optimizer).run()
    first, norm = (
        dict.fromkeys(["vfe.0.weight", "vfe.0.bias"], 0.1),
        dict.fromkeys(["vfe.1.weight", "vfe.1.bias"], 0.5),
    )
    head = {"head.weight": 1.0, "head.bias": 1.0}
    assert len(rates.seen) == 8 and all(seen == pytest.approx(first | norm | head) for seen in rates.seen)


def test_r3_what_a_schedule_releases_has_the_multiple_of_its_phase_or_of_the_module() -> None:
    rates = Rates()
    schedule = [phase(1, "vfe.1"), phase(1, "vfe.0", LR_SCALE=0.5)]
    frozen_trainer([rates], cfg_of("vfe", LR_SCALE={"vfe": 0.1, "head": 0.2}, SCHEDULE=schedule)).run()
    assert rates.seen[0] == pytest.approx({"head.weight": 0.2, "head.bias": 0.2})
    assert rates.seen[4]["vfe.1.weight"] == pytest.approx(0.1)
    assert rates.seen[4]["vfe.0.weight"] == pytest.approx(0.5)


@pytest.mark.parametrize("stop", ["it3", "epoch1"])
def test_r1_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path: Path, stop: str) -> None:
    cfg = cfg_of(LR_SCALE={"vfe": 0.1})
    whole = frozen_trainer([SaveEach(tmp_path)], cfg)
    whole.run()
    again = resumed(tmp_path / f"{stop}.pth", cfg)
    again.run()
    assert_same_state(tensors_of(whole.model), tensors_of(again.model))


def test_without_the_key_the_groups_are_as_they_were() -> None:
    optimizer = frozen_trainer(cfg=cfg_of()).optimizer
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]


def test_names_that_are_no_modules_are_one_error_with_the_nearest() -> None:
    plan = FreezePlan((), lr_scale={"vfee": 0.1, "vfe": 0.5, "heat": 2.0})
    with pytest.raises(FreezeError, match=r"LR_SCALE: 'vfee' names no module.*vfe") as error:
        scaled_parameters(plan, ToyModel())
    assert "'heat'" in str(error.value)


@pytest.mark.parametrize("value", [{"vfe": 0}, {"vfe": "a"}, [0.1], 0.1])
def test_a_value_that_is_no_factor_is_an_error(value: Any) -> None:
    with pytest.raises(FreezeError, match=r"MODEL\.FREEZE\.LR_SCALE"):
        FreezePlan.from_cfg({"MODEL": {"FREEZE": {"LR_SCALE": value}}})


def test_the_log_says_what_trains_with_which_rate() -> None:
    model = ToyModel()
    model.vfe[0].requires_grad_(False)
    (line,) = describe_lr_scale(FreezePlan((), lr_scale={"vfe": 0.1}), model)
    assert line == "learning rate x 0.1: vfe (2 trainable parameter tensors)"
    assert torch.is_tensor(model.head.weight) and describe_lr_scale(FreezePlan(()), model) == []
