"""Colours, columns and characters that an output can show."""

from __future__ import annotations

import io

import pytest

from pcdet_freeze.utils.terminal import columns, glyphs, paint, shorten, wants_color, wrap


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("variables", "on_terminal", "in_file"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_colours_follow_the_terminal_and_the_variables_of_the_user(
    variables: dict[str, str], on_terminal: bool, in_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (wants_color(Terminal()), wants_color(io.StringIO())) == (on_terminal, in_file)


def test_text_is_painted_for_a_terminal_only() -> None:
    assert paint("error", "red", Terminal()) == "\033[31merror\033[0m"
    assert paint("error", "red", io.StringIO()) == paint("error", None, Terminal()) == "error"


def test_without_a_terminal_there_are_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.__stdout__", io.StringIO())
    assert columns() == 80
    monkeypatch.setenv("COLUMNS", "120")
    assert columns() == 120


def test_an_encoding_without_lines_gets_ascii() -> None:
    assert glyphs(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")).branch == "├─ "
    assert glyphs(io.TextIOWrapper(io.BytesIO(), encoding="latin-1")).branch == "|- "


def test_a_shortened_name_keeps_both_ends() -> None:
    assert shorten("checkpoint_epoch_80.pth", 12) == "checkp…0.pth"
    assert shorten("short", 5) == "short" and all(len(shorten("a" * 30, n)) == n for n in range(3, 30))


def test_a_word_that_is_longer_than_a_line_stays_whole() -> None:
    assert wrap("see output/a-long/path ok", 10, "  ", "") == ["see", "  output/a-long/path", "  ok"]
