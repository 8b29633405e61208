"""A comparison of runs as text of a given width."""

from __future__ import annotations

from collections.abc import Sequence

from pcdet_freeze.report.compare import compare_runs, titles_of
from pcdet_freeze.report.record import RunRecord
from pcdet_freeze.utils.terminal import wrap

LONGEST_NAME = 32
"""a longer one stands in a line of its own"""
GAP = 2


def comparison_text(records: Sequence[RunRecord], limit: int = 80) -> str:
    """Lines of at most ``limit`` characters, a block for each group, a column for each run.

    A row whose cells do not fit their columns has a line for each run. Nothing is cut.
    """
    titles, groups = titles_of(records), compare_runs(records)
    every = [row for group in groups for row in group.rows]
    first = min(max((len(name) for name, _ in every), default=0), LONGEST_NAME, limit // 2) + GAP
    room = max((limit - first) // len(titles) - GAP, 1)
    fitting = [cells for _, cells in every if max(map(len, cells)) <= room]
    widths = [max((len(cells[n]) for cells in fitting), default=1) for n in range(len(titles))]
    lines: list[str] = []
    if any(len(title) > room for title in titles):
        lines += [f"{number}: {title}" for number, title in enumerate(titles, 1)] + [""]
        titles = [str(number) for number in range(1, len(titles) + 1)]
    widths = [max(width, len(title)) for width, title in zip(widths, titles, strict=True)]
    lines += _row("", titles, first, widths, titles, limit)
    for group in groups:
        if group.rows:
            lines += ["", group.title.upper()]
        for name, cells in group.rows:
            lines += _row(name, cells, first, widths, titles, limit)
    return "\n".join(lines)


def _row(
    name: str, cells: Sequence[str], first: int, widths: Sequence[int], titles: Sequence[str], limit: int
) -> list[str]:
    """The lines of one row."""
    if all(len(cell) <= width for cell, width in zip(cells, widths, strict=True)):
        pairs = zip(cells, widths, strict=True)
        line = " " * first + (" " * GAP).join(cell.ljust(width) for cell, width in pairs)
        if len(name) > first - GAP:
            return [name, line.rstrip()]
        return [(name.ljust(first) + line[first:]).rstrip()]
    lines = [name]
    for title, cell in zip(titles, cells, strict=True):
        lines += wrap(cell, limit, " " * 4 + " " * (len(title) + 2), f"    {title}: ")
    return lines
