"""F7 in two gloo processes: they fill one folder, read it, and hear of a refusal together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import assert_same_state
from two_processes import torchrun, worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("cache_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def ranks(out: Path) -> list[dict[str, Any]]:
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def test_f7_filling_and_reading_end_with_the_same_weights_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first = ranks[0]["filling"]["weights"]
    for rank in ranks:
        for name in ("filling", "reading"):
            assert_same_state(rank[name]["weights"], first)


def test_f7_ranks_share_one_folder_and_leave_no_sample_out(out: Path, ranks: list[dict[str, Any]]) -> None:
    assert len(list((out / "a").iterdir())) == 1
    assert all(rank[name]["filled"] == 12 for rank in ranks for name in ("filling", "reading"))
    assert any("12 of 12 samples are cached already" in line for line in ranks[0]["reading"]["told"])


def test_f7_the_ranks_sharing_of_buffers_opens_no_cache_anew(ranks: list[dict[str, Any]]) -> None:
    told = [rank[name]["told"] for rank in ranks for name in ("filling", "reading")]
    assert [sum("Cache of" in line for line in lines) for lines in told] == [1, 1, 1, 1]


def test_f7_a_disk_without_room_for_one_rank_stops_all_of_them(ranks: list[dict[str, Any]]) -> None:
    assert all("The cache must fit on the disk" in rank["huge"]["refused"] for rank in ranks)
