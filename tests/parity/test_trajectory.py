"""Parity of the first steps of `Trainer` with OpenPCDet, on the golden PointPillar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from easydict import EasyDict
from pointpillar_golden import Golden, load_json

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import Trainer, clip_norm_of

STEPS = 3  # later steps of Adam multiply rounding: all eight are in test_pointpillar_trajectory.py


class Records(Hook):
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def after_step(self, trainer: Trainer) -> None:
        momentum = trainer.optimizer.param_groups[0]["betas"][0]
        row = {"loss": trainer.loss, "norm": trainer.grad_norm, "lr": trainer.lr, "mom": momentum}
        self.rows.append(row | {"tb": trainer.tb_dict})


class SameBatch:
    """A loader that yields the golden batch eight times an epoch."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Any:
        return (self.golden.fresh_batch() for _ in range(8))


@pytest.fixture(scope="module")
def run(reference: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    figures = load_json(reference / "trajectories.json")["kitti_pointpillar"]
    golden, cfg, records = Golden(reference), EasyDict(figures["optim"]), Records()
    model = golden.model()
    optimizer = build_optimizer(model, cfg)
    schedule = build_scheduler(optimizer, figures["steps"], figures["steps"], cfg)
    end = {"epochs": 1, "max_iters": STEPS}
    trainer = Trainer(
        model, optimizer, schedule, SameBatch(golden), **end, hooks=[records], clip_norm=clip_norm_of(cfg)
    )
    trainer.run()
    return figures, records.rows


@pytest.mark.parametrize("step", range(STEPS))
def test_loss_and_gradient_norm_equal_openpcdet(run: Any, step: int) -> None:
    figures, rows = run
    assert rows[step]["loss"] == pytest.approx(figures["loss"][step], rel=[1e-5, 1e-5, 1e-3][step])
    norm = figures["grad_norm_before_clip"][step]
    assert rows[step]["norm"] == pytest.approx(norm, rel=[1e-3, 2e-3, 5e-3][step])
    assert rows[step]["tb"].keys() == figures["tb"][step].keys()


@pytest.mark.parametrize("step", range(STEPS))
def test_learning_rate_and_momentum_equal_openpcdet(run: Any, step: int) -> None:
    figures, rows = run
    assert rows[step]["lr"] == pytest.approx(figures["lr"][step], rel=1e-12)
    assert rows[step]["mom"] == pytest.approx(figures["mom"][step], rel=1e-12)
