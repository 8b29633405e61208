"""Parity of eight training steps of PointPillar with OpenPCDet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from easydict import EasyDict
from pointpillar_golden import Golden, load_json

from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer

# Adam steps by the learning rate wherever a gradient is not exactly zero, so rounding grows:
# weights changed by 1e-7 (relative) at the start move the loss by 2e-3 in step 4, and by 4e-2 from step 6 on.
LOSS_WITHIN = [1e-6, 1e-5, 1e-3, 5e-3, 2e-2, 8e-2, 8e-2, 8e-2]
NORM_WITHIN = [1e-4, 2e-3, 5e-3, 2e-2, 5e-2, 2e-1, 2e-1, 2e-1]


@pytest.fixture(scope="module")
def figures(reference: Path) -> dict[str, Any]:
    return load_json(reference / "trajectories.json")["kitti_pointpillar"]


@pytest.mark.slow
def test_eight_training_steps_have_the_losses_of_openpcdet(reference: Path, figures: dict[str, Any]) -> None:
    golden, optim_cfg, steps = Golden(reference), EasyDict(figures["optim"]), figures["steps"]
    model = golden.model().train()
    optimizer = build_optimizer(model, optim_cfg)
    schedule = build_scheduler(optimizer, steps, steps, optim_cfg)
    for step in range(steps):
        assert schedule.apply(optimizer, step) == pytest.approx(figures["lr"][step], rel=1e-9)
        assert optimizer.param_groups[0]["betas"][0] == pytest.approx(figures["mom"][step], rel=1e-9)
        optimizer.zero_grad()
        ret_dict, tb_dict, _ = model(golden.fresh_batch())
        ret_dict["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim_cfg.GRAD_NORM_CLIP)
        optimizer.step()
        assert ret_dict["loss"].item() == pytest.approx(figures["loss"][step], rel=LOSS_WITHIN[step])
        assert norm.item() == pytest.approx(figures["grad_norm_before_clip"][step], rel=NORM_WITHIN[step])
        classification = figures["tb"][step]["rpn_loss_cls"]
        assert tb_dict["rpn_loss_cls"] == pytest.approx(classification, rel=LOSS_WITHIN[step])
        assert tb_dict.keys() == figures["tb"][step].keys()
    assert_end(golden, model, figures)


def assert_end(golden: Golden, model: Any, figures: dict[str, Any]) -> None:
    """Sum of absolute values of every tensor, and standard deviation of the outputs in eval mode."""
    state = model.state_dict()
    assert list(state) == list(figures["final_abs_sum"])
    for key, expected in figures["final_abs_sum"].items():
        assert state[key].double().abs().sum().item() == pytest.approx(expected, rel=0.05), key
    with torch.no_grad():
        model.eval()(golden.fresh_batch())
    for key, expected in figures["eval_after"].items():
        found = golden.recipe.summary(model.dense_head.forward_ret_dict[key])
        assert found["shape"] == expected["shape"]
        assert found["std"] == pytest.approx(expected["std"], rel=0.25), key
