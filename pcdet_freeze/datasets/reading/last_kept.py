"""Keep what was last read of a file that many frames share, such as the annotations of a log."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from pcdet_freeze.datasets.reading.timed_reads import timed

P = ParamSpec("P")
T = TypeVar("T")


def last_kept(read: Callable[P, T]) -> Callable[P, T]:
    """Return ``read`` with the last value kept in this process, one at most; callers must not change it.

    The value is used again for equal arguments while the files among them have the same size and time. A file
    that cannot be looked at is read, so that the error is that of ``read``.
    """
    slot: list[tuple[object, T]] = []

    @wraps(read)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        given = (*args, *kwargs.values())
        try:
            key = (given, [_state(path) for path in given if isinstance(path, Path)])
        except OSError:
            return read(*args, **kwargs)
        last = slot[-1:]  # a thread may replace it
        if last and last[0][0] == key:
            return last[0][1]
        value = read(*args, **kwargs)
        slot[:] = [(key, value)]
        return value

    return kept


def _state(path: Path) -> tuple[int, int]:
    found = timed(path, path.stat)
    return found.st_size, found.st_mtime_ns
