"""Reads at the start of a run and in ``prepare``: one that does not return is an error that names its file.

The frames of a training are timed by the loader (:mod:`.frame_loader`), which reads in threads or processes
of its own; there :func:`timed` does nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.errors import PCDetFreezeError

T = TypeVar("T")

POLL_S = 1.0
"""a wait is counted in steps of this length, so that the time of a suspended job counts as one step"""
DEFAULT_S = 60.0
"""that of DATA_CONFIG.TIMEOUT"""


class ReadTimeoutError(PCDetFreezeError):
    """A read that has not returned within DATA_CONFIG.TIMEOUT.

    It is no DataError, which leaves out one frame: the next read would hang, too.
    """


_Answer = SimpleQueue[tuple[Any, BaseException | None]]


class _Reader:
    """A daemon thread that makes one call after another, so that the caller can leave one behind."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._asked: SimpleQueue[tuple[Callable[[], Any], _Answer] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="reads", daemon=True).start()

    def call(self, source: object, read: Callable[[], T]) -> T:
        made = _Answer()  # of this call alone: one that is late must not be taken for the next one's
        self._asked.put((read, made))
        for _ in range(math.ceil(self.limit / POLL_S)):
            try:
                value, error = made.get(timeout=min(POLL_S, self.limit))
            except Empty:
                continue
            if error is not None:
                raise error
            found: T = value
            return found
        raise ReadTimeoutError(
            f"DATA_CONFIG.TIMEOUT: a file must be read within {self.limit:g} s, but this one is still being "
            f"read: {source}. Does its disk or network answer? Raise TIMEOUT for slow ones"
        )

    def close(self) -> None:
        """End the thread when its present call returns."""
        self._asked.put(None)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            read, made = asked
            try:
                made.put((read(), None))
            except BaseException as error:
                made.put((None, error))


_reader: ContextVar[_Reader | None] = ContextVar("reader", default=None)


def limit_of(dataset_cfg: Config) -> float:
    """DATA_CONFIG.TIMEOUT in seconds; 0: none."""
    limit = dataset_cfg.get("TIMEOUT", DEFAULT_S)
    is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
    return float(limit) if is_number and 0 < limit < math.inf else 0.0


def current_limit() -> float:
    """That of the enclosing :func:`reads_within`, for threads, which begin without one; 0: none."""
    reader = _reader.get()
    return reader.limit if reader is not None else 0.0


@contextmanager
def reads_within(limit: float) -> Iterator[None]:
    """Within the block :func:`timed` raises where a read takes longer than ``limit`` seconds; 0: never."""
    reader = _Reader(limit) if limit else None
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)
        if reader is not None:
            reader.close()


@contextmanager
def reading_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that read frames for `prepare`; after an error or Ctrl-C no further frame is begun."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def timed(source: object, read: Callable[[], T]) -> T:
    """Return ``read()``, which reads ``source``, a path.

    Raises ReadTimeoutError within :func:`reads_within` where it takes longer than the limit.
    """
    reader = _reader.get()
    return read() if reader is None else reader.call(source, read)
