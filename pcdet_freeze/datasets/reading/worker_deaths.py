"""Data workers that are killed, found without torch's handler of SIGCHLD.

That handler raises wherever the main thread is: in a step, in a save, or while workers are ended on purpose.
Without it the main process may wait without end, since a worker that is killed while it writes leaves half a
batch in the queue and keeps the lock of the others. Here a thread waits for the end of the workers, and
kills the others where one died. Then no process has the writing end of the queue, and the read ends with an
EOFError.

torch's iterator over workers has no public names for its parts: ``_workers``, ``_worker_result_queue``,
``_index_queues``, ``_shutdown`` and ``_worker_pids_set`` are used.
"""

from __future__ import annotations

import threading
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data._utils import signal_handling

CLOSING_S = 1.0
"""seconds between the end of a killed worker's pipes and that of the worker, at most"""
JOIN_S = 5.0
"""seconds to wait for a killed worker, which a read from a dead network disk may keep"""


class WorkerDeaths(threading.Thread):
    """Ends all workers of ``batches``, torch's iterator, where one of them died.

    Args:
        batches: no reference is kept, so that a dropped iterator still shuts its workers down.
    """

    def __init__(self, batches: Any) -> None:
        super().__init__(name="data worker deaths", daemon=True)
        self.workers: list[BaseProcess] = list(batches._workers)
        self.died: list[int] = []
        """numbers of those that died first"""
        if batches._worker_pids_set:
            remove: Any = signal_handling._remove_worker_pids  # type: ignore[attr-defined]
            remove(id(batches))  # torch's handler of SIGCHLD does not raise for them
            batches._worker_pids_set = False
        batches._worker_result_queue._writer.close()  # workers have the other copies of the writing end

    def run(self) -> None:
        left: dict[Any, int] = {worker.sentinel: number for number, worker in enumerate(self.workers)}
        while left:
            ended = [left.pop(sentinel) for sentinel in wait(list(left))]
            died = [number for number in ended if _exit_code(self.workers[number]) != 0]
            if died and not self.died:
                self.died = died
                for worker in self.workers:
                    worker.kill()

    def wait_for_one(self) -> bool:
        """Whether a worker died, now or within ``CLOSING_S``: its pipes close a moment before it ends."""
        if not self.died and wait([worker.sentinel for worker in self.workers], CLOSING_S):
            self.join(JOIN_S)
        return bool(self.died)


def _exit_code(worker: BaseProcess) -> int:
    """The exit code of a process that has ended; another thread may be about to store it."""
    while worker.exitcode is None:
        time.sleep(0.001)
    return worker.exitcode


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
