"""Weights of several losses: fixed, learned (Kendall et al., 2018), and with frozen heads (T1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from task_cases import bare, task_batch, task_config, task_model

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import freeze

HEADS = ("dense_head", "segment_head", "lane_head")


def model_of(**keys: Any) -> Any:
    return task_model(config=task_config("segment", "lane") | keys)


def figures(model: Any, batch_dict: dict[str, Any] | None = None) -> tuple[torch.Tensor, dict[str, float]]:
    result, tb_dict, _ = model.train()(batch_dict or task_batch())
    return result["loss"], tb_dict


def test_the_loss_is_the_sum_of_all_heads_losses() -> None:
    loss, tb_dict = figures(model_of())
    parts = [tb_dict["loss_rpn"], tb_dict["loss_segment_head"], tb_dict["loss_lane_head"]]
    assert loss.item() == pytest.approx(sum(parts))


def test_loss_weights_change_the_sum_but_not_the_logged_losses() -> None:
    loss, tb_dict = figures(model_of(LOSS_WEIGHTS={"segment_head": 0.25, "lane_head": 3}))
    plain = figures(model_of())[1]
    assert tb_dict == plain
    wanted = plain["loss_rpn"] + 0.25 * plain["loss_segment_head"] + 3 * plain["loss_lane_head"]
    assert loss.item() == pytest.approx(wanted)


def test_learned_weights_start_at_one_and_are_logged() -> None:
    loss, tb_dict = figures(model_of(LEARN_LOSS_WEIGHTS=True))
    assert loss.item() == pytest.approx(figures(model_of())[0].item())
    assert {tb_dict[f"loss_weight_{name}"] for name in HEADS} == {1.0}


def test_a_learned_weight_is_the_formula_of_the_paper() -> None:
    model = model_of(LEARN_LOSS_WEIGHTS=True, LOSS_WEIGHTS={"lane_head": 2.0})
    with torch.no_grad():
        for number, name in enumerate(HEADS):
            getattr(model, name).loss_scale.log_variance.fill_(0.3 * number)
    losses = list(model.train()(task_batch())[1].values())[:3]
    s = torch.tensor([0.0, 0.3, 0.6])
    wanted = (torch.tensor(losses) * torch.tensor([1.0, 1.0, 2.0]) * torch.exp(-s) + s / 2).sum()
    assert figures(model)[0].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_learned_weight_settles_where_the_variance_is_that_of_the_loss() -> None:
    scale = model_of(LEARN_LOSS_WEIGHTS=True).lane_head.loss_scale
    optimizer = torch.optim.SGD(scale.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        scale(torch.tensor(3.0)).backward()
        optimizer.step()
    assert scale.weight() == pytest.approx(1 / 6, rel=1e-3)


def test_t1_the_learned_weight_of_a_frozen_head_is_frozen_with_it() -> None:
    model = model_of(LEARN_LOSS_WEIGHTS=True)
    handle = freeze(model, ["vfe", "backbone_2d.blocks", "backbone_2d.deblocks", "dense_head"])
    _, tb_dict = figures(model)
    assert "loss_weight_dense_head" not in tb_dict and "loss_weight_lane_head" in tb_dict
    live = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "lane_head.loss_scale.log_variance" in live
    assert "dense_head.loss_scale.log_variance" not in live
    assert "dense_head.loss_scale.log_variance" in handle.certificate().to_plain()["digests"]


def test_a_batch_without_labels_of_a_task_leaves_its_learned_weight_alone() -> None:
    model = model_of(LEARN_LOSS_WEIGHTS=True)
    loss, _ = figures(model, bare(task_batch(), "lane_map"))
    loss.backward()
    assert model.lane_head.loss_scale.log_variance.grad == 0
    assert model.segment_head.loss_scale.log_variance.grad != 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"LOSS_WEIGHTS": {"lane": 1.0}},
            r"LOSS_WEIGHTS.lane is not a head of this model; did you mean lane_head\?",
        ),
        ({"LOSS_WEIGHTS": {"lane_head": -1}}, "LOSS_WEIGHTS.lane_head must be a number, 0 or more; got -1"),
        (
            {"LOSS_WEIGHTS": {"lane_head": float("nan")}},
            "LOSS_WEIGHTS.lane_head must be a number, 0 or more; got nan",
        ),
        ({"LOSS_WEIGHTS": [1, 1]}, "LOSS_WEIGHTS must"),
        ({"LEARN_LOSS_WEIGHTS": 1}, "LEARN_LOSS_WEIGHTS must be true or false; got 1"),
    ],
)
def test_a_fault_in_the_weights_is_one_clear_error(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(**keys)
