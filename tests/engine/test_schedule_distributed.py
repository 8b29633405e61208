"""FREEZE.SCHEDULE under DistributedDataParallel, in two real gloo processes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from engine_toy import assert_same_state
from schedule_worker import PLACES
from two_processes import torchrun, worker

pytestmark = pytest.mark.slow

Found = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("schedule_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def parameters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.endswith(("weight", "bias"))}


def test_r3_the_phases_begin_on_all_ranks_at_once(ranks: list[Found]) -> None:
    head, norm, linear = ({f"{m}.weight", f"{m}.bias"} for m in ("head", "vfe.1", "vfe.0"))
    wanted = [head] * 2 + [head | norm] * 2 + [head | norm | linear] * 2
    for rank in ranks:
        assert [set(names) for names in rank["seen"]["live"]] == wanted


def test_r3_what_enters_is_averaged_over_the_ranks_from_its_first_step_on(ranks: list[Found]) -> None:
    first, second = (rank["seen"]["weights"] for rank in ranks)
    for left, right in zip(first, second, strict=True):
        assert_same_state(parameters(left), parameters(right))
    for step, (before, after) in enumerate(pairwise(first), start=2):
        moved = {name for name in parameters(after) if not torch.equal(before[name], after[name])}
        assert moved == set(ranks[0]["seen"]["live"][step - 1])


def test_r3_ddp_is_made_anew_and_the_old_one_is_gone(ranks: list[Found]) -> None:
    for rank in ranks:
        assert rank["seen"]["wrappers"] == [[False]] * 6  # one wrapper, find_unused_parameters=False


def test_h7_to_unfreeze_by_hand_under_the_live_ddp_is_still_an_error(ranks: list[Found]) -> None:
    for rank in ranks:
        assert len(rank["seen"]["refused"]) == 4
        assert all("under a live DistributedDataParallel" in text for text in rank["seen"]["refused"])


@pytest.mark.parametrize("place", PLACES)
def test_r1_two_ranks_resumed_in_any_phase_end_as_without_a_break(ranks: list[Found], place: str) -> None:
    for rank in ranks:
        assert_same_state(rank["again"][place], rank["whole"])


def test_p1_a_change_on_one_rank_in_a_later_phase_stops_both(ranks: list[Found]) -> None:
    for rank in ranks:
        assert "rank 1: vfe.0.weight changed" in rank["verdict"]
