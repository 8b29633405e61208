"""Notice a rank that is stopped, gone or stuck: each rank writes a beat, rank 0 reads them all.

A beat is ``beat/<rank>``: "<count> <iteration> <seconds without progress> <where the main thread stands>".
Rank 0 holds the store, so that the others notice its end by themselves: the store no longer answers.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pcdet_freeze.engine.ranks.store import Store

PAUSED_S = 5.0
"""a longer time between two looks means that this process itself was stopped: the clocks start anew"""
READS = 100
"""times that rank 0 reads the beats within the timeout"""
COLLECTIVES = ("torch/distributed/", "torch/autograd/graph.py", "torch/nn/parallel/distributed.py")
"""files in which a rank waits for the others"""


@dataclass
class _Seen:
    """The last beat of a rank that differs from the one before."""

    count: str = ""
    at: float = 0.0
    stuck_s: float = 0.0
    where: str = ""


class Heartbeats:
    """One rank's beat, and on rank 0 the judgement over all.

    Args:
        timeout: seconds without a beat, or without an iteration in the training loop, after which a rank
            counts as hung.
        iteration: the iteration of this rank while steps run, else None.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        timeout: float,
        iteration: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self._iteration, self._clock = iteration, clock
        self._count, self._looked, self._read_at = 0, clock(), float("-inf")
        self._progress: tuple[int | None, float] = (None, clock())
        self._seen = {other: _Seen(at=clock()) for other in range(size)}

    def poll(self, store: Store) -> str | None:
        """Write this rank's beat; on rank 0 return what is wrong with the others, else None."""
        now = self._clock()
        paused = now - self._looked > PAUSED_S
        self._looked = now
        iteration = self._iteration()
        if paused or iteration is None or iteration != self._progress[0]:
            self._progress = (iteration, now)
        self._count += 1
        stuck = now - self._progress[1]
        where = main_thread_place() if stuck > self.timeout / 2 else "-"
        store.set(f"beat/{self.rank}", f"{self._count} {iteration} {stuck:.1f} {where}")
        if self.rank > 0:
            return None
        if paused:
            for seen in self._seen.values():
                seen.at = now
        if now - self._read_at >= self.timeout / READS:
            self._read_at = now
            self._read(store, now)
        return self._silent(now) or self._stuck()

    def _read(self, store: Store, now: float) -> None:
        """All beats in one request; asking whether each exists takes one for each, so only until it does."""
        there = [other for other, seen in self._seen.items() if seen.count or store.check([f"beat/{other}"])]
        beats = store.multi_get([f"beat/{other}" for other in there])
        for other, beat in zip(there, beats, strict=True):
            count, _, stuck, where = beat.decode().split(" ", 3)
            if count != self._seen[other].count:
                self._seen[other] = _Seen(count, now, float(stuck), where)

    def _silent(self, now: float) -> str | None:
        late = {other: now - seen.at for other, seen in self._seen.items() if now - seen.at > self.timeout}
        if not late:
            return None
        ranks = ", ".join(f"rank {other} (for {seconds:.0f} s)" for other, seconds in late.items())
        return (
            f"Every rank must answer within --timeout ({self.timeout:g} s), but {ranks} did not: the process "
            "is stopped, or its machine or network is down."
        )

    def _stuck(self) -> str | None:
        if max(seen.stuck_s for seen in self._seen.values()) <= self.timeout:
            return None
        inside = {o: s for o, s in self._seen.items() if not s.where.startswith("waits")}
        named = inside or self._seen
        ranks = "; ".join(f"rank {other}: {seen.where}" for other, seen in named.items())
        rest = " The other ranks wait for it in a collective." if inside else ""
        return (
            f"An iteration must not take longer than --timeout ({self.timeout:g} s), but this one does. "
            f"{ranks}.{rest}"
        )


def main_thread_place() -> str:
    """Where the main thread stands: "file.py, line 3, in read"; with "waits in " before a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "-"
    stack = traceback.extract_stack(frame)
    last = stack[-1]
    place = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
    waits = any(part in entry.filename for entry in stack[-3:] for part in COLLECTIVES)
    return f"waits in {place}" if waits else place
