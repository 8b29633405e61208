"""Progress of a loop: a bar on a terminal, else a line now and then for a log, else nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY_S = 30.0
"""seconds between two lines"""


def shows_bars() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def progress(
    items: Iterable[T], total: int, what: str, unit: str, log: Callable[[str], object] | None = None
) -> Iterator[T]:
    """Yield ``items``, and show how many of ``total`` are done, at which rate, and the remaining time.

    Args:
        what: begins the bar or the line.
        unit: name of one item.
        log: takes a line every ``EVERY_S`` seconds, where there is no terminal; None: nothing is shown there.
    """
    if shows_bars():
        yield from tqdm(items, total=total, desc=what, unit=unit, dynamic_ncols=True, leave=False)
    elif log is None:
        yield from items
    else:
        yield from _logged(items, total, what, unit, log)


def _logged(
    items: Iterable[T], total: int, what: str, unit: str, log: Callable[[str], object]
) -> Iterator[T]:
    """The first item starts the clock: before it, processes start and code is compiled."""
    begin = last = 0.0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if done == 1:
            begin = last = now
        elif now - last >= EVERY_S:
            rate, last = (done - 1) / (now - begin), now
            left = clock((total - done) / rate)
            log(f"{what}: {done} of {total}, {rate:.3g} {unit}/s, {left} left")


def clock(seconds: float) -> str:
    """``MM:SS``, or ``H:MM:SS``."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
