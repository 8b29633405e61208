"""Two threads beside the training of each rank: one talks to the other ranks, one watches that it can.

They use a store of their own in rank 0, which outlives torchrun.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

from pcdet_freeze.engine.ranks.heartbeats import PAUSED_S, Heartbeats
from pcdet_freeze.engine.ranks.stop_agreement import StopAgreement
from pcdet_freeze.engine.ranks.store import open_store
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.signals.stop_signals import StopSignals, end_process

POLL_S = 0.5
BUSY_POLL_S = 0.05
"""while a stop is being agreed on"""
GONE_S = 15.0
"""seconds from the first failed request to rank 0's store until the run counts as broken"""


class RankMonitor:
    """Starts the threads; ``close`` ends them. Only with several ranks.

    Attributes:
        agreement: for the hook that stops the training.
    """

    def __init__(self, signals: StopSignals, timeout: float, logger: logging.Logger) -> None:
        self.rank, self.size, self.timeout, self.logger = (
            distributed.rank(), distributed.world_size(), timeout, logger,
        )  # fmt: skip
        self.signals = signals
        self.agreement = StopAgreement(self.rank, self.size, signals)
        self.beats = Heartbeats(self.rank, self.size, timeout, lambda: self.agreement.timed_iteration)
        self._store = open_store(timeout)
        self._parent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._closed = threading.Event()
        self._answered = time.monotonic()
        self._failed = ""
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True) for run in (self._talk, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads; rank 0's store remains until the process ends."""
        self._closed.set()

    def _talk(self) -> None:
        busy = False
        while not self._closed.wait(BUSY_POLL_S if busy else POLL_S):
            self._watch_parent()
            try:
                busy = self.agreement.poll(self._store)
                fault = self.beats.poll(self._store)
            except RuntimeError as error:  # torch's errors of a store
                self._failed = self._failed or str(error)
                continue
            self._answered, self._failed = time.monotonic(), ""
            if fault is not None:
                self._end(fault)

    def _watch_parent(self) -> None:
        if self._parent is not None and os.getppid() != self._parent:
            self._parent = None
            self.logger.error("torchrun has ended without its workers: rank %d stops.", self.rank)
            self.signals.request(signal.SIGTERM)
            if not self.agreement.running:
                self._end("No training loop runs, so that there is nothing to save.", 143)

    def _watch(self) -> None:
        """End the process where rank 0 no longer answers; it needs no store for that."""
        looked = time.monotonic()
        while not self._closed.wait(POLL_S):
            now = time.monotonic()
            if now - looked > PAUSED_S:  # this process itself was stopped
                self._answered = now
            looked = now
            silent = now - self._answered
            if silent > (min(GONE_S, self.timeout) if self._failed else self.timeout):
                self._end(
                    f"Every rank must answer within --timeout ({self.timeout:g} s), but rank 0 has not "
                    f"for {silent:.0f} s: its process has ended or is stopped, or its machine or network "
                    f"is down. {self._failed}"
                )

    def _end(self, message: str, code: int = 1) -> None:
        """End this process: its main thread may wait for another rank and cannot be interrupted."""
        if self._closed.is_set():
            return
        self.logger.error("%s Rank %d ends; start the run again to resume.", message, self.rank)
        end_process(code)
