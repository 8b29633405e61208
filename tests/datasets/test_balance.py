"""Balanced epochs: which frames come how often, as a pure function of seed and epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from concat_sets import joined, joined_cfg

from pcdet_freeze.datasets import EpochSampler, data_faults
from pcdet_freeze.datasets.concat.balance import repetitions, shares, turns
from pcdet_freeze.errors import ConfigError


def order(epoch: int = 0, seed: int = 0, **keys: Any) -> list[int]:
    dataset = joined(**keys)
    sampler = EpochSampler(dataset, 2, shuffle=True, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def sets_of(indices: list[int]) -> Counter[str]:
    dataset = joined()
    return Counter(dataset.frame_name(index).partition("/")[0] for index in indices)


def test_without_a_balance_every_frame_comes_once() -> None:
    assert sorted(order()) == list(range(11))


def test_sets_come_equally_often() -> None:
    assert sets_of(order(BALANCE="set", FRAMES_PER_EPOCH=12)) == {"boxes": 4, "clouds": 4, "lanes": 4}


def test_sets_come_by_their_weight() -> None:
    cfg = joined_cfg(BALANCE="set", FRAMES_PER_EPOCH=12)
    for name, weight in (("boxes", 0.0), ("clouds", 1.0), ("lanes", 2.0)):
        cfg.DATASETS[name].WEIGHT = weight
    found = order(BALANCE="set", FRAMES_PER_EPOCH=12, DATASETS=cfg.DATASETS)
    assert sets_of(found) == {"clouds": 4, "lanes": 8}


def test_tasks_come_equally_often_whichever_sets_have_their_label() -> None:
    cfg = joined_cfg()
    cfg.DATASETS.lanes.LABELS = ["gt_boxes", "lane_map"]
    found = order(BALANCE="task", FRAMES_PER_EPOCH=240, DATASETS=cfg.DATASETS)
    assert sets_of(found) == {"boxes": 60, "clouds": 80, "lanes": 80 + 20}


def test_only_the_frames_of_a_task_are_drawn_where_it_is_the_only_one() -> None:
    assert sets_of(order(BALANCE="task", TASKS=["point_labels"])) == {"clouds": 11}


def test_a_task_without_any_frame_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"TASKS must be labels that some frame has.*got height"):
        joined(BALANCE="task", TASKS=["height"])


@pytest.mark.parametrize(("keys", "message"), [
    ({"FRAMES_PER_EPOCH": 5}, "BALANCE: set or task"),
    ({"TASKS": ["lane_map"], "BALANCE": "set"}, "BALANCE: task"),
])  # fmt: skip
def test_a_key_without_effect_is_an_error(keys: dict[str, Any], message: str) -> None:
    (fault,) = data_faults(joined_cfg(**keys))
    assert message in fault


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    keys = {"BALANCE": "task"}
    assert order(2, seed=1, **keys) == order(2, seed=1, **keys)
    assert order(2, seed=1, **keys) != order(3, seed=1, **keys) != order(3, seed=2, **keys)


def test_a_large_set_goes_on_where_the_epoch_before_ended() -> None:
    keys = {"BALANCE": "set", "FRAMES_PER_EPOCH": 9}
    drawn = [index % 11 for epoch in range(2) for index in order(epoch, **keys) if index % 11 < 6]
    assert sorted(drawn) == list(range(6))


def test_a_frame_that_comes_again_is_another_repetition() -> None:
    found = order(BALANCE="set", FRAMES_PER_EPOCH=12)
    assert len(set(found)) == 12
    assert Counter(index // 11 for index in found if index % 11 >= 9) == {0: 2, 1: 2}


@pytest.fixture
def share() -> Callable[..., list[int]]:
    def of(rank: int, world: int, start: int = 0) -> list[int]:
        dataset = joined(BALANCE="task")
        sampler = EpochSampler(dataset, 1, shuffle=True, rank=rank, world_size=world)
        sampler.set_epoch(4, start)
        assert start or len(sampler) == len(list(sampler))
        return list(sampler)

    return of


def test_ranks_share_an_epoch_and_continue_within_it(share: Callable[..., list[int]]) -> None:
    ranks = [share(rank, 2) for rank in range(2)]
    together = [index for step in zip(*ranks, strict=True) for index in step]
    assert together[:11] == share(0, 1) and [len(rank) for rank in ranks] == [6, 6]
    assert share(1, 2, start=4) == ranks[1][4:]


def test_an_evaluation_reads_each_frame_once_in_order() -> None:
    dataset = joined(training=False, BALANCE="task")
    sampler = EpochSampler(dataset, 2, shuffle=False, fill=False)
    assert list(sampler) == list(range(11)) and len(sampler) == 11


def test_shares_add_up() -> None:
    assert shares(11, [1, 1, 1]) == [4, 4, 3] and shares(5, [0, 3, 1]) == [0, 4, 1]


def test_turns_of_a_pool_are_parts_of_one_sequence() -> None:
    pool, seeds = np.arange(10, 17), (3, 0)
    whole = turns(pool, 0, 30, seeds)
    parts = [turns(pool, 5 * k, 5, seeds) for k in range(6)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert sorted(whole[:7]) == pool.tolist() and len(turns(pool, 4, 0, seeds)) == 0


def test_repetitions_are_counted_in_order() -> None:
    assert repetitions(np.array([5, 2, 5, 5, 2])).tolist() == [0, 0, 1, 2, 1]
