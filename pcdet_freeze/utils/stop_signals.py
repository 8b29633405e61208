"""SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 as a request to stop, for code that stops at certain points.

Exit codes are those of a shell: 128 plus the number of the signal (SIGINT 130, SIGTERM 143, SIGUSR1 138).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
SAME_SIGNAL_S = 0.5
"""A terminal, torchrun and SLURM each send the signal: what arrives within this time is one request."""


class StoppedBySignal(SystemExit):
    """A signal other than SIGINT ended a run after its checkpoint was written; ``code`` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"Stopped by {signal.Signals(self.number).name}"


def stopped_by(number: int) -> BaseException:
    """The exception that ends a run after the signal ``number``: KeyboardInterrupt for SIGINT."""
    return KeyboardInterrupt() if number == signal.SIGINT else StoppedBySignal(number)


class StopSignals:
    """Between ``install`` and ``restore`` the first signal sets ``received``, and does nothing else.

    A second signal, ``SAME_SIGNAL_S`` or more after the first, has its former effect. A signal that is
    ignored (nohup, a background job of a shell) remains ignored. Without effect outside the main thread.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._former: dict[int, Any] = {}

    def install(self) -> None:
        """Replace the handlers; does nothing where they are replaced already."""
        if self._former or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            former = signal.getsignal(number)
            if former not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
                self._former[number] = former
                signal.signal(number, self._receive)

    def restore(self) -> None:
        """Restore the former handlers."""
        former, self._former = self._former, {}
        for number, handler in former.items():
            signal.signal(number, handler)

    def request(self, number: int) -> None:
        """Set ``received`` as the signal ``number`` would."""
        if self.received is None:
            self.received, self._since = number, time.monotonic()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.request(number)
        elif time.monotonic() - self._since >= SAME_SIGNAL_S:
            self._former_effect(number, frame)

    def _former_effect(self, number: int, frame: FrameType | None) -> None:
        handler = self._former.get(number, signal.SIG_DFL)
        if callable(handler):
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def end_process(code: int, number: int | None = None) -> NoReturn:
    """End this process at once: kill its data workers, send ``number`` to other children, write the logs."""
    import logging  # not above, like multiprocessing: a command installs its handlers early
    import multiprocessing

    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
    for child in _child_processes() if number is not None else ():
        if child not in [worker.pid for worker in workers]:
            os.kill(child, number or 0)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # closed; or the main thread is writing to it
            stream.flush()
    os._exit(code)


def _child_processes() -> list[int]:
    """Process ids of all children; empty where the system has no /proc."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []
