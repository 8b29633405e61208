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
"""Signals of one kind that arrive within this time are one request."""
LAUNCHED_SAME_SIGNAL_S = 5.0
"""the same under a launcher: the terminal and it both send the signal, seconds apart on a loaded machine"""
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
"""environment variables that torchrun and srun set"""


class Repeats:
    """Distinguishes a second signal from further copies of the first.

    Only a signal of the same kind is a second one: SLURM sends SIGUSR1 and then SIGTERM, and torchrun sends
    SIGTERM after a SIGINT that the terminal has sent already.
    """

    def __init__(self) -> None:
        self._first: dict[int, float] = {}
        launched = any(name in os.environ for name in LAUNCHERS)
        self.same_s = LAUNCHED_SAME_SIGNAL_S if launched else SAME_SIGNAL_S

    def is_second(self, number: int) -> bool:
        """Whether ``number``, which arrives now, came before, ``same_s`` seconds ago or more."""
        now = time.monotonic()
        return now - self._first.setdefault(number, now) >= self.same_s


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

    A second signal of the same kind (:class:`Repeats`) has its former effect. A signal that is ignored
    (nohup, a background job of a shell) remains ignored. Without effect outside the main thread.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._repeats = Repeats()
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
            self.received, self._repeats = number, Repeats()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.request(number)
        if self._repeats.is_second(number):
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
