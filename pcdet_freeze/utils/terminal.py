"""What the standard output can show: columns, colours, characters."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import Literal, NamedTuple, TextIO

Color = Literal["red", "yellow", "green", "blue", "bold"]
_CODES: dict[Color, str] = {"red": "31", "yellow": "33", "green": "32", "blue": "34", "bold": "1"}
WITHOUT_TERMINAL, NARROWEST = 80, 40


def columns() -> int:
    """Columns of the terminal, or COLUMNS where it is set; 80 where the output is no terminal."""
    return max(NARROWEST, shutil.get_terminal_size((WITHOUT_TERMINAL, 24)).columns)


def wants_color(stream: TextIO | None = None) -> bool:
    """Whether ``stream`` (None: the standard output) is shown in colour.

    NO_COLOR (https://no-color.org) turns colours off, FORCE_COLOR turns them on where the output is no
    terminal; NO_COLOR wins. TERM=dumb has none.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    stream = stream or sys.stdout
    return os.environ.get("TERM") != "dumb" and hasattr(stream, "isatty") and stream.isatty()


def paint(text: str, color: Color | None, stream: TextIO | None = None) -> str:
    """``text`` in ``color``, for ``stream``; as it is where that shows no colours."""
    if color is None or not text or not wants_color(stream):
        return text
    return f"\033[{_CODES[color]}m{text}\033[0m"


class Glyphs(NamedTuple):
    """Characters that draw a tree, and what stands for characters that were left out."""

    branch: str
    last: str
    bar: str
    ellipsis: str


UNICODE, ASCII = Glyphs("├─ ", "└─ ", "│  ", "…"), Glyphs("|- ", "`- ", "|  ", "..")


def glyphs(stream: TextIO | None = None) -> Glyphs:
    """UNICODE, or ASCII where the encoding of ``stream`` (None: the standard output) lacks the former."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"  # StringIO has none
    try:
        "".join(UNICODE).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def shorten(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters: its middle is left out, since names differ at their ends."""
    if len(text) <= width:
        return text
    mark = glyphs().ellipsis
    kept = max(width - len(mark), 1)
    end = kept // 2
    return f"{text[: kept - end]}{mark}{text[len(text) - end :] if end else ''}"


def wrap(text: str, width: int, indent: str = "", first: str | None = None) -> list[str]:
    """Lines of at most ``width`` characters, longer ones only where a single word is longer.

    Args:
        indent: of all lines but the first.
        first: the beginning of the first line; None: ``indent``.
    """
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def printable(text: str) -> str:
    """``text`` with ``\\udce9`` for a byte of a file name that is not UTF-8, which print() refuses."""
    return text.encode("utf-8", "backslashreplace").decode()
