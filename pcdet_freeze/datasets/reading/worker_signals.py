"""Signals in data workers: the main process handles them, finishes its step, and ends its workers itself.

A terminal, torchrun and SLURM send signals to a whole group of processes. A worker that ended at once would
end the step that the main process wants to finish.
"""

from __future__ import annotations

import os
import signal
import threading

from pcdet_freeze.utils.signals.stop_signals import SIGNALS

LOOK_S = 2.0
"""seconds between two looks whether the parent process is alive"""


def leave_signals_to_the_main_process() -> None:
    """Ignore all signals that ask a run to stop, but for a SIGTERM that the parent process sends.

    The worker ends with its parent, also where that is killed.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        # threads that start from now on inherit the mask: only the waiting one receives the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """End this process with a SIGTERM of its parent, or within ``LOOK_S`` where the parent is dead.

    A worker that writes a batch does not see that nobody reads it: it holds both ends of its queue.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, LOOK_S)
        if received is not None and received.si_pid in (parent, os.getpid()):
            break
    os._exit(128 + signal.SIGTERM)
