"""Several dense heads under DistributedDataParallel, in two real gloo processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from several_heads_cases import built, several_config
from two_processes import torchrun, worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("several_heads_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("run", ["frozen", "both"])
def test_a_rank_without_labels_of_the_new_class_keeps_step_with_the_others(ranks: Any, run: str) -> None:
    first, second = (rank[run]["state"] for rank in ranks)
    assert not ranks[0][run]["find_unused"]
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_its_loss_of_the_new_head_is_zero(ranks: Any) -> None:
    for own, other in zip(ranks[1]["frozen"]["figures"], ranks[0]["frozen"]["figures"], strict=True):
        assert own["hm_loss_head_0_cyclist_head"] == 0 < other["hm_loss_head_0_cyclist_head"]
        assert "loss_rpn" not in own


def test_p1_the_frozen_head_is_that_of_the_start(ranks: Any) -> None:
    start = built(several_config("centers"), seed=0).state_dict()
    found = ranks[0]["frozen"]["state"]
    changed = {name.partition(".")[0] for name in start if not torch.equal(start[name], found[name])}
    assert changed == {"cyclist_head"}
