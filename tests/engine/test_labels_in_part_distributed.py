"""Labels in part under DistributedDataParallel, in two real gloo processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from two_processes import torchrun, worker

LOSSES = ("loss_rpn", "loss_segment_head", "loss_lane_head")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("labels_in_part_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def test_a_rank_without_labels_of_a_task_keeps_step_with_the_others(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["state"] for rank in ranks)
    assert not ranks[0]["find_unused"]
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_its_loss_of_that_task_is_zero_and_of_the_others_is_not(ranks: list[dict[str, Any]]) -> None:
    for step, told in enumerate(ranks[1]["told"]):
        zero = {LOSSES[step]} if step < len(LOSSES) else set(LOSSES)
        assert {name for name in LOSSES if told[name] == 0} == zero
        assert all(ranks[0]["told"][step][name] > 0 for name in LOSSES)


def test_gradient_norms_at_the_trunk_are_measured_under_ddp_too(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["told"][0]["grad_norm_lane_head"] > 0
    assert ranks[1]["told"][0]["grad_norm_dense_head"] == 0
