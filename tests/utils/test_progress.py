"""Progress of a loop: a bar on a terminal, lines for a log, else nothing."""

from __future__ import annotations

import io
import sys

import pytest

from pcdet_freeze.utils.progress import clock, progress


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress("abc", 3, "read", "frame")) == ["a", "b", "c"]
    assert "read:" in sys.stderr.getvalue() and "frame/s" in sys.stderr.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_without_a_terminal_that_redraws_lines_nothing_is_shown(
    stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(progress("abc", 3, "read", "frame")) == ["a", "b", "c"]
    assert sys.stderr.getvalue() == "" and capsys.readouterr().out == ""


def test_a_log_has_a_line_every_30_seconds_with_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = iter([100.0, *(100.0 + 10 * n for n in range(1, 7))])  # the first frame takes long, others 10 s
    monkeypatch.setattr("time.monotonic", lambda: next(ends))
    lines: list[str] = []
    assert len(list(progress(range(7), 13, "eval", "batch", lines.append))) == 7
    assert lines == ["eval: 4 of 13, 0.1 batch/s, 01:30 left", "eval: 7 of 13, 0.1 batch/s, 01:00 left"]


def test_a_loop_that_is_left_early_closes_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def items():
        try:
            yield from range(3)
        finally:
            closed.append(True)

    shown = progress(items(), 3, "read", "frame")
    next(shown)
    shown.close()
    assert closed == [True]


def test_a_clock_has_hours_where_they_are_needed() -> None:
    assert [clock(seconds) for seconds in (-1, 59.9, 61, 3661)] == ["00:00", "00:59", "01:01", "1:01:01"]
