"""A DataLoader that ends where a read does not return, and survives one killed worker.

Every process that reads frames writes the index of its current frame, and when it began, to a board in shared
memory (16 bytes a process). The main process waits for a batch in steps of ``POLL`` seconds and looks at the
board in between: a frame that is older than DATA_CONFIG.TIMEOUT is named in a DataError. The time counts
while the main process waits. Where a look comes much later than its step, the job was suspended (SIGSTOP,
Ctrl-Z): the time starts again.

The order of the frames and the random numbers of a sample depend on the epoch and the position alone, so that
workers that are started again continue with the same batches.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch.utils.data import DataLoader

from pcdet_freeze.datasets.reading.worker_deaths import JOIN_S, WorkerDeaths, kill_workers
from pcdet_freeze.datasets.reading.worker_signals import leave_signals_to_the_main_process
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.allocator import keep_freed_memory
from pcdet_freeze.utils.loader_threads import draws_from_own_generators
from pcdet_freeze.utils.rng import untouched_rng

POLL = 1.0
"""seconds between two looks at the board"""
SUSPENDED = 5.0
"""a look that comes by more than these seconds too late: the job was suspended"""
FIRST = 3
"""the first frame of a process may take so many times the limit, since numba compiles or loads functions"""
RESTARTS = 1
"""how often workers are started again in a run"""
_TIMED_OUT, _DIED = "DataLoader timed out", "DataLoader worker (pid"


class Board:
    """What each reading process is at: (processes, 2) float64, index of the frame and time of its begin."""

    def __init__(self, processes: int, limit: float = 0.0) -> None:
        self.first_s = (FIRST - 1) * limit
        self.rows = torch.full((max(processes, 1), 2), -1.0, dtype=torch.float64).share_memory_()

    def clear(self) -> None:
        """No process reads a frame."""
        self.rows.fill_(-1)

    def writer(self, process: int) -> Callable[[int], None]:
        """The function by which a process says at which frame it is."""
        row, now = self.rows.numpy()[process], time.monotonic  # the same clock in all processes
        more = [self.first_s]

        def write(index: int) -> None:
            row[1] = now() + (more.pop() if more else 0.0)
            row[0] = index

        return write

    def current(self, process: int) -> tuple[int, float]:
        """The frame that a process reads (-1: none), and when it began."""
        index, begin = self.rows[process].tolist()
        return int(index), begin


class StartWorker:
    """``worker_init_fn``: signals are left to the main process; frames are written to the board."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def __call__(self, worker: int) -> None:
        leave_signals_to_the_main_process()
        keep_freed_memory()  # inherited only where workers are forked
        dataset: Any = torch.utils.data.get_worker_info().dataset  # type: ignore[union-attr]
        dataset.reading = self.board.writer(worker)


class FrameLoader(DataLoader):
    """DataLoader over a :class:`DatasetTemplate` and its :class:`EpochSampler`, see above.

    Args:
        dataset: its ``timeout`` is the limit in seconds of one frame; 0: none.
        batch_size, sampler, num_workers, collate_fn: as DataLoader's.
    """

    def __init__(self, dataset: DatasetTemplate, **options: Any) -> None:
        self.limit = dataset.timeout
        self.board = Board(options.get("num_workers", 0), self.limit)
        self.restarts_left = RESTARTS
        workers = options.get("num_workers", 0)
        poll = min(POLL, self.limit) if workers and self.limit else 0
        self.counted_from = self._last_look = time.monotonic()
        super().__init__(dataset, worker_init_fn=StartWorker(self.board), timeout=poll, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers > 0:
            return WorkerBatches(self, super().__iter__)
        return OwnBatches(self, super().__iter__()) if self.limit else super().__iter__()

    def begin_to_wait(self) -> None:
        """The main process waits for a batch from now on; before, it may have been suspended in a step."""
        self.counted_from = self._last_look = time.monotonic()

    def overdue(self) -> list[int]:
        """The processes whose frame takes longer than the limit."""
        if not self.limit:
            return []
        now = time.monotonic()
        if now - self._last_look > POLL + SUSPENDED:
            self.counted_from = now
        self._last_look = now
        states = [self.board.current(process) for process in range(len(self.board.rows))]
        began = [max(begin, self.counted_from) if index >= 0 else now for index, begin in states]
        return [number for number, begin in enumerate(began) if now - begin > self.limit]

    def frames_at(self, processes: list[int]) -> str:
        """Names of the frames that ``processes`` read."""
        dataset: Any = self.dataset
        current = [self.board.current(process)[0] for process in processes]
        return ", ".join(dataset.frame_name(index) for index in current if index >= 0)

    def late(self, processes: list[int]) -> DataError:
        """The error of a read that does not return."""
        return DataError(
            f"DATA_CONFIG.TIMEOUT: a frame must be read within {self.limit:g} s, but this one is still being "
            f"read: {self.frames_at(processes)}. Does its disk or network answer? Raise TIMEOUT for slow ones"
        )


class WorkerBatches:
    """The batches of an epoch, made by workers."""

    def __init__(self, loader: FrameLoader, start: Callable[[], Any]) -> None:
        self.loader, self._start = loader, start
        self.given = 0
        self._batches = self._started()

    def _started(self) -> Any:
        """Start the workers; torch's handler of SIGCHLD, which raises anywhere in the loop, is not kept."""
        before = signal.getsignal(signal.SIGCHLD)
        self.loader.board.clear()  # a killed worker leaves its frame there
        batches = self._start()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        self.deaths = WorkerDeaths(batches)
        draws_from_own_generators(self.deaths).start()
        return batches

    def __iter__(self) -> WorkerBatches:
        return self

    def __len__(self) -> int:
        return len(self.loader)

    def __next__(self) -> Any:
        self.loader.begin_to_wait()
        while True:
            try:
                batch = next(self._batches)
            except (RuntimeError, EOFError, OSError) as error:
                if not str(error).startswith(_TIMED_OUT):
                    if not (str(error).startswith(_DIED) or self.deaths.wait_for_one()):
                        raise
                    self._restart(error)
                elif self.deaths.died:
                    self._restart(error)
                elif late := self.loader.overdue():
                    kill_workers(self._batches)
                    raise self.loader.late(late) from None
            else:
                self.given += 1
                return batch

    def _restart(self, error: Exception) -> None:
        """Start all workers again at the next batch."""
        text = self._what_died()
        kill_workers(self._batches)
        if self.loader.restarts_left <= 0:
            raise DataError(
                f"{text}. It was not the first in this run. If the machine is short of memory, "
                "use fewer --workers"
            ) from error
        self.loader.restarts_left -= 1
        logging.getLogger("pcdet_freeze").warning("%s. The data workers are started again once", text)
        sampler: Any = self.loader.sampler
        sampler.start += self.given * (self.loader.batch_size or 1)
        try:
            with untouched_rng():  # a new iterator draws a seed
                self._batches = self._started()
        finally:
            sampler.start -= self.given * (self.loader.batch_size or 1)

    def _what_died(self) -> str:
        workers = self._batches._workers
        self.deaths.join(JOIN_S)
        dead = self.deaths.died or [n for n, worker in enumerate(workers) if not worker.is_alive()]
        codes = ", ".join(f"{workers[n].pid} ({_ending(workers[n].exitcode)})" for n in dead)
        frames = self.loader.frames_at(dead)
        return f"A data worker ended: process {codes}{f', while it read {frames}' if frames else ''}"

    def _shutdown_workers(self) -> None:
        self._batches._shutdown_workers()
        self.deaths.join(JOIN_S)  # until it has stored the exit codes, the workers seem to be alive


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else ""
    return f"killed by signal {-code}{f' {name}' if name else ''}"


_Asked = SimpleQueue[bool]
_Made = SimpleQueue[tuple[Any, BaseException | None]]


def _make_batches(batches: Iterator[Any], asked: _Asked, made: _Made) -> None:
    """The thread of OwnBatches; it does not refer to it, so that a dropped iterator ends the thread."""
    while asked.get():
        try:
            made.put((next(batches), None))
        except BaseException as error:
            made.put((None, error))


class OwnBatches:
    """The batches of an epoch, made by a thread, so that the main thread can leave a read behind.

    The thread makes one batch when the main thread asks for it, and nothing in between.
    """

    def __init__(self, loader: FrameLoader, batches: Iterator[Any]) -> None:
        self.loader = loader
        self._asked: _Asked = SimpleQueue()
        self._made: _Made = SimpleQueue()
        dataset: Any = loader.dataset
        loader.board.clear()
        dataset.reading = loader.board.writer(0)
        # a daemon: a read that never returns does not keep the process from ending
        thread = threading.Thread(
            target=_make_batches, args=(batches, self._asked, self._made), name="frames", daemon=True
        )
        draws_from_own_generators(thread).start()  # each sample has a stream of its own

    def __iter__(self) -> OwnBatches:
        return self

    def __len__(self) -> int:
        return len(self.loader)

    def __next__(self) -> Any:
        self.loader.begin_to_wait()
        self._asked.put(True)
        while True:
            try:
                batch, error = self._made.get(timeout=min(POLL, self.loader.limit))
            except Empty:
                if late := self.loader.overdue():
                    raise self.loader.late(late) from None
                continue
            if error is not None:
                raise error
            return batch

    def _shutdown_workers(self) -> None:
        self._asked.put(False)

    def __del__(self) -> None:
        self._asked.put(False)
