"""Frozen heads under DistributedDataParallel, in two real gloo processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from two_processes import torchrun, worker

Found = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("frozen_heads_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def moved(found: Found) -> set[str]:
    return {name for name, value in found["before"].items() if not torch.equal(value, found["after"][name])}


@pytest.mark.parametrize("variant", ["needed", "idle", "part"])
def test_t1_ranks_agree_without_find_unused_parameters(ranks: list[Found], variant: str) -> None:
    first, second = (rank[variant] for rank in ranks)
    assert not first["find_unused"]
    assert all(torch.equal(value, second["after"][name]) for name, value in first["after"].items())


def test_t1_under_ddp_everything_moves_but_the_frozen_heads(ranks: list[Found]) -> None:
    idle = ("dense_head", "roi_head", "backbone_2d.deblocks")
    for variant, still in (("needed", ("dense_head",)), ("idle", idle)):
        found = ranks[0][variant]
        live = {name for name in found["before"] if not name.startswith((*still, "global_step"))}
        assert moved(found) == live


def test_t1_under_ddp_a_head_runs_only_where_it_is_needed(ranks: list[Found]) -> None:
    for rank in ranks:
        assert rank["needed"]["calls"]["dense_head"] == [(False, False)] * 3
        assert rank["idle"]["calls"]["dense_head"] == rank["idle"]["calls"]["roi_head"] == []


def test_t2_under_ddp_the_live_part_of_a_head_learns(ranks: list[Found]) -> None:
    names = {name for name in moved(ranks[0]["part"]) if name.startswith("dense_head")}
    assert names == {"dense_head.net.1.weight", "dense_head.net.1.bias"}
