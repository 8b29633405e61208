"""Schedules: OpenPCDet's curves, as functions of the iteration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import OPTIM

from pcdet_freeze.engine.optim.lr_schedule import OneCycle, StepDecay, build_scheduler


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "optim.json").read_text())


@pytest.fixture
def adam() -> torch.optim.Adam:
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_one_cycle_over_100_steps(golden: dict[str, Any]) -> None:
    schedule = OneCycle(0.003, (0.95, 0.85), 10, 0.4, 100)
    assert [schedule.lr(i) for i in range(100)] == pytest.approx(golden["onecycle"]["lr"], rel=1e-12)
    assert [schedule.momentum(i) for i in range(100)] == pytest.approx(golden["onecycle"]["mom"], rel=1e-12)


def test_one_cycle_over_37_steps_peaks_at_a_whole_iteration(golden: dict[str, Any]) -> None:
    schedule = OneCycle(0.01, (0.95, 0.85), 10, 0.4, 37)
    facts = golden["onecycle_37"]
    assert [schedule.lr(i) for i in range(38)] == pytest.approx(facts["lr"][:38], rel=1e-9)
    assert [schedule.momentum(i) for i in range(38)] == pytest.approx(facts["mom"][:38], rel=1e-12)


def test_one_cycle_stays_at_its_end_beyond_the_last_step() -> None:
    schedule = OneCycle(0.01, (0.95, 0.85), 10, 0.4, 37)
    assert schedule.lr(50) == schedule.lr(37) == pytest.approx(1e-7)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_cycle_over_next_to_no_steps_has_a_rate(steps: int) -> None:
    assert OneCycle(0.01, (0.95, 0.85), 10, 0.4, steps).lr(0) == pytest.approx(0.01)


def test_adam_and_sgd_decay_by_steps_as_openpcdets(golden: dict[str, Any], adam: torch.optim.Adam) -> None:
    cfg = {**OPTIM, "OPTIMIZER": "adam", "LR": 0.003, "DECAY_STEP_LIST": [1, 2]}
    schedule = build_scheduler(adam, 40, 10, cfg)
    assert [schedule.lr(i) for i in range(40)] == pytest.approx(golden["adam"]["lr"], rel=1e-12)
    assert golden["adam"]["lr"] == golden["sgd"]["lr"]


def test_a_decayed_rate_never_falls_below_lr_clip() -> None:
    assert StepDecay(0.1, (1, 2, 3), 0.1, 0.005).lr(9) == 0.005


def test_lr_warmup_rises_along_a_cosine_from_lr_over_div_factor(adam: torch.optim.Adam) -> None:
    cfg = {**OPTIM, "OPTIMIZER": "adam", "LR_WARMUP": True, "DECAY_STEP_LIST": [100]}
    schedule = build_scheduler(adam, 40, 10, cfg)
    rates = [schedule.lr(i) for i in range(12)]
    assert rates[0] == pytest.approx(0.001) and rates[5] == pytest.approx(0.0055)
    assert rates == sorted(rates) and rates[10:] == [0.01, 0.01]


def test_building_a_schedule_sets_the_first_rate(adam: torch.optim.Adam) -> None:
    build_scheduler(adam, 100, 10, OPTIM)
    assert adam.param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_group_with_an_lr_scale_gets_that_multiple(adam: torch.optim.Adam) -> None:
    adam.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 0.1})
    lr = OneCycle(0.01, (0.95, 0.85), 10, 0.4, 100).apply(adam, 3)
    assert [group["lr"] for group in adam.param_groups] == [lr, lr * 0.1]
