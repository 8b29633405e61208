"""A line where nothing was printed for a while; other output is passed on."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

from pcdet_freeze.cli.common.heartbeat import Heartbeat


class Lines:
    """A stream that says when its first line has come."""

    def __init__(self) -> None:
        self.text, self.has_line = "", threading.Event()

    def write(self, text: str) -> int:
        self.text += text
        if "\n" in self.text:
            self.has_line.set()
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_silence_is_broken_by_a_line_that_names_what_runs(monkeypatch: Any) -> None:
    stream = Lines()
    monkeypatch.setattr(sys, "stdout", stream)
    with Heartbeat("stage 2", every=0.01):
        assert stream.has_line.wait(10)
    assert stream.text.startswith("... stage 2: 0 s\n")
    assert sys.stdout is stream


def test_what_is_printed_is_passed_on_and_counts_as_a_line(monkeypatch: Any) -> None:
    stream = Lines()
    monkeypatch.setattr(sys, "stdout", stream)
    with Heartbeat("stage 2", every=60) as heartbeat:
        before = heartbeat._last
        print("Loss: 1.0")
        assert heartbeat._last > before and sys.stdout.isatty() is False
    assert stream.text == "Loss: 1.0\n"


def test_the_thread_ends_where_the_output_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Lines):
        def flush(self) -> None:
            raise BrokenPipeError

    stream, raised = Closed(), []
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(threading, "excepthook", raised.append)
    before = threading.active_count()
    with Heartbeat("work", every=0.01):
        assert stream.has_line.wait(20)
        for _ in range(200):
            if threading.active_count() <= before:
                break
            time.sleep(0.02)
    assert raised == [] and threading.active_count() <= before
