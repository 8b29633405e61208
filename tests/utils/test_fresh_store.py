"""Ranks of a restart agree on keys that no earlier attempt has written."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torch import distributed as dist

from pcdet_freeze.errors import TrainingError
from pcdet_freeze.utils.fresh_store import fresh_store


def attempt(store: Any, size: int, late: int = -1) -> list[Any]:
    """The stores that the ranks of one attempt get; rank ``late`` comes last."""
    found: list[Any] = [None] * size
    order = sorted(range(size), key=lambda rank: rank == late)
    threads = [
        threading.Thread(target=lambda r=rank: found.__setitem__(r, fresh_store(store, r, size, 30)))
        for rank in order
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("late", [0, 1, 2])
def test_all_ranks_share_keys_that_an_earlier_attempt_does_not(late: int) -> None:
    store = dist.HashStore()
    first, second = attempt(store, 3), attempt(store, 3, late)
    first[0].set("address", "of a killed rank")
    assert not any(one.check(["address"]) for one in second)
    second[2].set("address", "of a living rank")
    assert [one.get("address") for one in second] == [b"of a living rank"] * 3


def test_an_id_that_a_killed_rank_left_is_answered_and_then_the_new_one() -> None:
    store = dist.HashStore()
    store.set("join/1", "killed")
    found = attempt(store, 2, late=1)
    found[0].set("key", "1")
    assert found[1].get("key") == b"1"


@pytest.mark.parametrize(("rank", "missing"), [(0, r"ranks \[1\]"), (1, "rank 0")])
def test_a_rank_that_does_not_come_is_named(rank: int, missing: str) -> None:
    with pytest.raises(TrainingError, match=missing):
        fresh_store(dist.HashStore(), rank, 2, timeout=0.05)
