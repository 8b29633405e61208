"""Hold Ctrl-C back while code runs that a KeyboardInterrupt would damage.

A signal handler of Python runs between two instructions of Python code, also in a function that a C extension
calls. An extension that does not expect an exception there ends the process: torch while it is imported, and
numba while it loads or compiles a function.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class HeldInterrupt:
    """Context manager that calls the handler of SIGINT after the block instead of within it.

    Does nothing outside the main thread, and where SIGINT has no handler in Python.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._received: list[FrameType | None] = []

    def __enter__(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._handler = handler
            signal.signal(signal.SIGINT, self._hold)

    def __exit__(self, *raised: object) -> None:
        if self._handler is None:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self._received:
            self._handler(signal.SIGINT, self._received[0])

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._received.append(frame)


def uninterrupted(function: F) -> F:
    """Decorator of a compiled function that Python code calls: Ctrl-C takes effect after the call."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with HeldInterrupt():
            return function(*args, **kwargs)

    return cast(F, call)
