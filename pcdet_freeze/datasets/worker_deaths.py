"""Data workers that are killed: the main process hears of it while it waits for a batch, and at no other time.

torch's DataLoader has a handler of SIGCHLD that raises wherever the main thread is: in a step, in a save, or
while workers are ended on purpose. Without it the main thread may wait without end, since a worker that is
killed while it writes leaves half a batch in its queue. The functions here replace that handler for one
iterator; they use the names `_workers`, `_shutdown`, `_index_queues` and `_worker_pids_set` of torch's
iterator over worker processes, which has no public ones.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch.utils.data._utils import signal_handling

JOIN_S = 5.0
"""seconds to wait for a killed worker, which a read from a dead network disk may keep"""


class WorkerDied(RuntimeError):
    """A data worker ended with a signal or an exit code."""


def leave_out_of_sigchld(batches: Any) -> None:
    """Remove the workers of ``batches`` from those for which torch's own handler of SIGCHLD raises."""
    if batches._worker_pids_set:
        signal_handling._remove_worker_pids(id(batches))
        batches._worker_pids_set = False


@contextmanager
def raises_where_a_worker_died(batches: Any) -> Iterator[None]:
    """Raise :class:`WorkerDied` within the context, also out of a system call, once.

    Outside the main thread, where Python runs no signal handlers, only at the begin of the context.
    """
    _check(batches)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raising = True
    before = signal.getsignal(signal.SIGCHLD)

    def on_sigchld(number: int, frame: FrameType | None) -> None:
        nonlocal raising
        if callable(before):
            before(number, frame)
        if raising:
            try:
                _check(batches)
            except WorkerDied:
                raising = False
                raise

    signal.signal(signal.SIGCHLD, on_sigchld)
    try:
        _check(batches)  # one may have died since the first check
        yield
    finally:
        raising = False
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _check(batches: Any) -> None:
    if not batches._shutdown and any(worker.exitcode for worker in batches._workers):
        raise WorkerDied("a data worker died")


def kill_workers(batches: Any) -> None:
    """Kill all workers and leave their queues: a dead worker may hold a lock of them."""
    batches._shutdown = True  # torch must not use the queues to shut the workers down
    for worker in batches._workers:
        worker.kill()
    for worker in batches._workers:
        worker.join(JOIN_S)
    for queue in batches._index_queues:
        queue.cancel_join_thread()
        queue.close()
