"""Interleaved rounds: all tasks take turns, so that other load on the machine affects them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one or more values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


Rounds = dict[str, list[float]]
"""task -> seconds of each round"""


def interleave(
    tasks: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, repeat: int = 1
) -> Rounds:
    """Time each task once a round; the task that comes first changes from round to round.

    On the CPU this is process time, which excludes other programs; on CUDA, wall time until all kernels have
    finished. With ``repeat``, the mean of so many calls.
    """
    seconds: Rounds = {name: [] for name in tasks}
    names = list(tasks)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(tasks[name], device, repeat))
    return seconds


def seconds_of(task: Callable[[], Any], device: torch.device, repeat: int = 1) -> float:
    """Seconds of one call of ``task``, the mean of ``repeat`` calls."""
    clock = time.process_time
    if device.type == "cuda":
        clock = time.perf_counter
        torch.cuda.synchronize(device)
    begin = clock()
    for _ in range(repeat):
        task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - begin) / repeat


def ratios(seconds: Rounds, name: str, base: str) -> Spread:
    """Ratios of ``name`` to ``base`` in the same round."""
    return Spread.of([a / b for a, b in zip(seconds[name], seconds[base], strict=True)])


def timed(seconds: Rounds, name: str, base: str) -> dict[str, Any]:
    """Timing columns of a row: medians with quartiles, and the number of rounds."""
    own, ratio = Spread.of(seconds[name]), ratios(seconds, name, base)
    return {
        "time_ratio": ratio.median,
        "time_ratio_quartiles": [ratio.low, ratio.high],
        "seconds": own.median,
        "seconds_quartiles": [own.low, own.high],
        "rounds": len(seconds[name]),
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with ``torch.set_num_threads(count)``."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
