"""The fenced blocks of the documentation, in order, with the marker of those that a test cannot run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"(?:^(?P<marker>[ ]*<!-- not run: .+? -->)\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
"""first line of a block that is a file of the reader"""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    marker: str = ""
    """why no test runs it; empty: it runs"""

    @property
    def file(self) -> str:
        """Name of the file whose content this is; empty for other blocks."""
        found = FILE.match(self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of one page, without their indentation."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("indent")) + 1
        name = page.relative_to(ROOT).as_posix()
        yield Block(name, line, found["language"], dedent(found["text"]), (found["marker"] or "").strip())


def all_blocks() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in pages() for block in blocks_of(page)]
