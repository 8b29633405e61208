"""A line on the standard output where a program has printed nothing for a while."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any


class Heartbeat:
    """Context manager that prints ``what`` and its seconds so far after ``every`` seconds without a line.

    Attributes:
        what: what runs now; changing it starts its seconds again.
    """

    def __init__(self, what: str = "", every: float = 8.0) -> None:
        self.every = every
        self.begin(what)
        self._stream: Any = None
        self._ended = threading.Event()

    def begin(self, what: str) -> None:
        """Something else runs from now on."""
        self.what, self._began, self._last = what, time.monotonic(), time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._stream, sys.stdout = sys.stdout, self
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        sys.stdout = self._stream

    def write(self, text: str) -> int:
        """Write to the standard output, as it was before."""
        self._last = time.monotonic()
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _watch(self) -> None:
        while not self._ended.wait(min(self.every / 8, 1.0)):
            if time.monotonic() - self._last < self.every:
                continue
            try:
                self.write(f"... {self.what}: {time.monotonic() - self._began:.0f} s\n")
                self.flush()
            except (BrokenPipeError, ValueError):  # the output is closed
                return
