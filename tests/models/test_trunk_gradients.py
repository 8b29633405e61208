"""The gradient norm of each task at the trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from task_cases import STAGE_2, task_batch, task_config, task_model

from pcdet_freeze.freezing import freeze

HEADS = {"dense_head", "segment_head", "lane_head"}


def norms(model: Any) -> dict[str, float]:
    model.measure_gradients = True
    tb_dict = model.train()(task_batch())[1]
    return {name.removeprefix("grad_norm_"): value for name, value in tb_dict.items() if "grad_norm" in name}


def test_nothing_is_measured_unless_asked() -> None:
    assert not any("grad_norm" in name for name in task_model("lane").train()(task_batch())[1])


@pytest.mark.parametrize("head", sorted(HEADS))
def test_the_gradient_norm_is_that_of_the_weighted_loss_of_the_task(head: str) -> None:
    weights = {name: 2.0 if name == head else 0.0 for name in HEADS}
    model = task_model(config=task_config("segment", "lane") | {"LOSS_WEIGHTS": weights})
    measured = norms(model)
    model.zero_grad()
    model.train()(task_batch())[0]["loss"].backward()
    trunk = (*model.vfe.parameters(), *model.backbone_2d.parameters())
    wanted = torch.stack([p.grad.norm() for p in trunk if p.grad is not None]).norm().item()
    assert measured[head] == pytest.approx(wanted, rel=1e-4)
    assert [value for name, value in measured.items() if name != head] == [0.0, 0.0]


def test_measuring_changes_no_gradient() -> None:
    found = []
    for measure in (False, True):
        model = task_model("segment", "lane")
        model.measure_gradients = measure
        model.train()(task_batch())[0]["loss"].backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_frozen_heads_and_a_frozen_trunk_have_none() -> None:
    model = task_model("segment", "lane")
    freeze(model, STAGE_2)
    assert norms(model).keys() == {"segment_head", "lane_head"}
    freeze(model, ["backbone_2d"])
    assert norms(model) == {}
