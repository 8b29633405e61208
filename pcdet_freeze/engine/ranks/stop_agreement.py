"""All ranks stop after the same step, without a collective or a wait in the steps before it.

A thread of each rank (:class:`.monitor.RankMonitor`) reads and writes keys of a store:

```
stop<run>/asked              a rank received a signal; run = 0, 1, ...: runs of this process before it
stop<run>/<n>/at             rank 0 proposes to stop after this iteration; n = 1, 2, ...
stop<run>/<n>/answer/<rank>  "1 <iteration>": the rank will wait there; "0 <iteration>": it is past it already
stop<run>/<n>/verdict        "stop", or "again": one rank was past it
```

The main thread compares two numbers after each step. Only in the proposed iteration it waits, for the
verdict, which needs nothing but the threads. No rank is ever assumed to be near another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pcdet_freeze.engine.ranks.store import Store
from pcdet_freeze.errors import TrainingError
from pcdet_freeze.utils.signals.stop_signals import StopSignals

MARGIN = 2
"""iterations between the newest known one and the proposed one, at least"""


class StopAgreement:
    """One rank's part. ``begin``, ``must_stop`` and ``end`` are for the main thread, ``poll`` for the other.

    Args:
        signals: receives the signals of this rank.
        gives_up_s: seconds that the main thread waits for the verdict.
    """

    def __init__(self, rank: int, size: int, signals: StopSignals, gives_up_s: float = 20) -> None:
        self.rank, self.size, self.signals, self.gives_up_s = rank, size, signals, gives_up_s
        self.iteration, self.running = 0, False
        self._between: Callable[[], bool] = bool
        self._changed = threading.Condition()
        self._polling = threading.Lock()
        self._run, self._ended = 0, False
        self._forget()

    def _forget(self) -> None:
        """Nothing is agreed on yet in this run."""
        self._prefix = f"stop{self._run}"
        self._at: int | None = None
        """the iteration that this rank has promised to wait in"""
        self._stop = False
        """all ranks have promised it"""
        self._asked = False
        self._round = 0
        """the last proposal that this rank has answered"""
        self._open = False
        """its verdict is not known yet"""
        self._proposed = self._judged = self._polled_at = 0
        """rank 0: the last proposal, the last verdict, and the iteration of the last poll"""

    def begin(self, iteration: int, between: Callable[[], bool] = bool) -> None:
        """The loop starts or continues at ``iteration``; ``between`` says whether hooks of no step run.

        After ``end`` it is another run, which has nothing of the agreement of the one before.
        """
        if self._ended:
            with self._polling:
                self._run, self._ended = self._run + 1, False
                self._forget()
                self.iteration = self._polled_at = iteration
        self.iteration, self._between, self.running = iteration, between, True

    def end(self) -> None:
        """The loop is over."""
        self._ended = self._ended or self.running
        self.running = False

    @property
    def timed_iteration(self) -> int | None:
        """The iteration, whose time is limited; None outside of the loop and between epochs."""
        return self.iteration if self.running and not self._between() else None

    def must_stop(self, iteration: int) -> bool:
        """Whether all ranks stop after ``iteration``, which this rank has just finished.

        Raises TrainingError where another rank does not answer; then no checkpoint can be written.
        """
        if self.size == 1:
            return self.signals.received is not None
        with self._changed:
            self.iteration = iteration
            if self._at is None or iteration < self._at:
                return False
            if self._changed.wait_for(lambda: self._stop or self._at is None, self.gives_up_s):
                return self._stop
        raise TrainingError(
            f"All ranks must agree on the iteration to stop after, but one did not answer within "
            f"{self.gives_up_s:g} s. The run ends without a new checkpoint; start it again to resume."
        )

    def poll(self, store: Store) -> bool:
        """Read and answer what is new in ``store``; returns whether a stop is being agreed on."""
        with self._polling:
            return self._poll(store)

    def _poll(self, store: Store) -> bool:
        if self.signals.received is not None and not self._asked:
            store.set(f"{self._prefix}/asked", "1")
            self._asked = True
        if self.rank == 0:
            self._propose(store)
        self._answer(store)
        if self.rank == 0:
            self._judge(store)
        self._read_verdict(store)
        return self._asked or self._round > 0

    def _propose(self, store: Store) -> None:
        """Open the first round where a rank asks for it."""
        steps = self.iteration - self._polled_at
        self._polled_at = self.iteration
        if self._proposed == 0 and store.check([f"{self._prefix}/asked"]):
            self._open_round(store, self.iteration + MARGIN + 2 * steps)

    def _open_round(self, store: Store, at: int) -> None:
        self._proposed += 1
        store.set(f"{self._prefix}/{self._proposed}/at", str(at))

    def _answer(self, store: Store) -> None:
        key = f"{self._prefix}/{self._round + 1}"
        if self._open or not store.check([f"{key}/at"]):
            return
        at = int(store.get(f"{key}/at"))
        with self._changed:
            waits = self.iteration < at
            self._at = at if waits else None
        self._round, self._open = self._round + 1, True
        store.set(f"{key}/answer/{self.rank}", f"{int(waits)} {self.iteration}")

    def _judge(self, store: Store) -> None:
        if self._judged == self._proposed:
            return
        keys = [f"{self._prefix}/{self._proposed}/answer/{rank}" for rank in range(self.size)]
        if not store.check(keys):
            return
        answers = [store.get(key).split() for key in keys]
        agreed = all(int(waits) for waits, _ in answers)
        store.set(f"{self._prefix}/{self._proposed}/verdict", "stop" if agreed else "again")
        self._judged = self._proposed
        if not agreed:
            newest = max(int(iteration) for _, iteration in answers)
            self._open_round(store, newest + MARGIN * 2**self._proposed)

    def _read_verdict(self, store: Store) -> None:
        key = f"{self._prefix}/{self._round}/verdict"
        if not self._open or not store.check([key]):
            return
        self._open = False
        with self._changed:
            self._stop = store.get(key) == b"stop"
            self._at = self._at if self._stop else None
            self._changed.notify_all()
