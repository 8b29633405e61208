"""Which frames an epoch of a balanced training has: a pure function of seed and epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` turns divided by ``weights``; what is left over goes to the first that are due one more."""
    exact = total * np.asarray(weights, np.float64) / np.sum(weights)
    whole = np.floor(exact).astype(np.int64)
    more = np.argsort(-(exact - whole), kind="stable")[: total - int(whole.sum())]
    whole[more] += 1
    return whole.tolist()


def turns(pool: np.ndarray, begin: int, count: int, seeds: Sequence[int]) -> np.ndarray:
    """Entries ``begin`` to ``begin + count`` of ``pool`` (n,), shuffled anew each time that it is through.

    So a pool that is larger than its share of an epoch goes on where the epoch before ended: no frame comes
    a second time before all others have come. ``seeds``: what the shuffles depend on.
    """
    rounds = range(begin // len(pool), -(-(begin + count) // len(pool)))
    words = [part & 0xFFFFFFFF for part in seeds]
    drawn = [np.random.RandomState([*words, number]).permutation(pool) for number in rounds]
    first = begin - rounds.start * len(pool)
    return np.concatenate([*drawn, np.zeros(0, np.int64)])[first : first + count].astype(np.int64)


def repetitions(frames: np.ndarray) -> np.ndarray:
    """(n,) how often each of ``frames`` (n,) occurs before its place."""
    order = np.argsort(frames, kind="stable")
    ordered = frames[order]
    found = np.empty(len(frames), np.int64)
    found[order] = np.arange(len(frames)) - np.searchsorted(ordered, ordered, side="left")
    return found


def draw_epoch(
    pools: Sequence[np.ndarray], weights: Sequence[float], total: int, frames: int, seed: int, epoch: int
) -> np.ndarray:
    """(total,) indices of ``epoch``: each pool in its share, see :func:`turns`.

    Args:
        pools: frames to draw from; each has one or more.
        weights: share of each pool.
        total: samples of an epoch.
        frames: number of all frames; repetition n of a frame is its index plus n times this.
        seed: of the run.
    """
    parts = [
        turns(pool, epoch * count, count, (seed, number))
        for number, (pool, count) in enumerate(zip(pools, shares(total, weights), strict=True))
    ]
    drawn = np.concatenate(parts)
    return drawn + frames * repetitions(drawn)
