"""Functions in forked processes that form a gloo group: a fork takes milliseconds, a new process seconds.

No backward pass may have run in the parent, or none may run in the ranks: torch refuses it after a fork.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

FORK = multiprocessing.get_context("fork")


def in_ranks(folder: Path, call: Callable[[int], Any], size: int = 2) -> list[Any]:
    """What ``call(rank)`` returns in each of ``size`` ranks, or the text of its error."""
    ends = [FORK.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        FORK.Process(target=_one, args=(folder, call, rank, size, ends[rank][1])) for rank in range(size)
    ]
    for rank in ranks:
        rank.start()
    found = [receive.recv() if receive.poll(60) else "no answer" for receive, _ in ends]
    for rank in ranks:
        rank.kill()
        rank.join()
    return found


def _one(folder: Path, call: Callable[[int], Any], rank: int, size: int, answer: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    try:
        answer.send(call(rank))
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")
    dist.barrier()  # the others may still be in a collective
