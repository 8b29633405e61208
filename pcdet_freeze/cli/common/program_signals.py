"""Signals of a command's process: one line and an exit code of 128 + N, never a traceback.

SIGINT raises KeyboardInterrupt; SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 end the process at once, since an
exception in the middle of compiled code could damage more. (A training replaces these handlers while its loop
runs: it finishes the step.) A second signal of the same kind ends the process wherever its main thread is, in
C++ code too: a thread reads the signals from a pipe to which the interpreter writes them. Only this thread
judges by time. Python calls its handlers late, when compiled code returns.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from pcdet_freeze.utils.signals.stop_signals import SIGNALS, Repeats, end_process

HARD_END_WAITS_S = 10.0


class ProgramSignals:
    """Context manager that handles the signals for the block; does nothing outside the main thread.

    Args:
        name: of the program, for the line.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._former: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._repeats = Repeats()
        self._interrupted = False
        self._ending = threading.Lock()
        self._wakeup = -1

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            former = signal.getsignal(number)
            # ignored (nohup, a background job), or not Python's: as it was
            if former in (signal.SIG_DFL, signal.default_int_handler):
                self._former[number] = former
                signal.signal(number, self._receive)
        self._listen()

    def __exit__(self, *raised: object) -> None:
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            _not_in_children.discard(self)
            os.close(self._pipe[1])  # the thread closes its own end
            self._pipe = None
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _listen(self) -> None:
        reading, writing = self._pipe = os.pipe()
        os.set_blocking(writing, False)
        self._wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        _not_in_children.add(self)
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()

    def _read(self, reading: int) -> None:
        while received := os.read(reading, 1):
            if received[0] in self._former and self._repeats.is_second(received[0]):
                self.end(received[0])
        os.close(reading)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.end(number)
        if not self._interrupted:  # the thread ends the process if a later one is a second signal
            self._interrupted = True
            raise KeyboardInterrupt

    def end(self, number: int) -> None:
        """Print one line and end the process, with its data workers; other children get the signal."""
        if not self._ending.acquire(blocking=False):
            time.sleep(HARD_END_WAITS_S)  # the other thread ends the process
        name = signal.Signals(number).name
        what = "interrupted" if number == signal.SIGINT else f"stopped by {name}"
        os.write(2, f"\n{self.name}: {what}\n".encode())
        end_process(128 + number, number)

    def forget(self) -> None:
        """In a forked child: restore the handlers, leave the parent's pipe alone."""
        signal.set_wakeup_fd(-1)
        for end in self._pipe or ():
            os.close(end)
        for number, handler in self._former.items():
            signal.signal(number, handler)


_not_in_children: set[ProgramSignals] = set()


def _in_child() -> None:
    for one in list(_not_in_children):
        one.forget()
    _not_in_children.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
