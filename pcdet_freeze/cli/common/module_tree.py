"""The modules of a model as a tree: parameters, state, norm layers, and what freezes or trains each."""

from __future__ import annotations

from collections.abc import Sequence

from pcdet_freeze.engine.explain import Row
from pcdet_freeze.utils.terminal import Color, Glyphs, glyphs, paint, shorten, wrap

HEADER = ("module", "params", "state", "norm", "dropout", "group", "by")
STATES = {"yes": "frozen", "locked": "locked", "partly": "partly", "no": "trains"}
LONGEST_NAME, NARROWEST_NAME, NARROWEST_TEXT = 32, 14, 20
GAP = "  "


def draw_tree(rows: Sequence[Row], limit: int) -> list[str]:
    """Lines of at most ``limit`` characters, from 60 on; the last column goes on in lines below.

    A column in which no module has anything is left out.
    """
    signs = glyphs()
    branches = [_branch(rows, index, signs) for index in range(len(rows))]
    names = [_name(row, branch) for row, (branch, _) in zip(rows, branches, strict=True)]
    cells = [(name, *_cells(row)) for name, row in zip(names, rows, strict=True)]
    used = [n for n in range(len(HEADER)) if n in (0, len(HEADER) - 1) or any(c[n] != "-" for c in cells)]
    table = [[line[n] for n in used] for line in (HEADER, *cells)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
    widths[0] -= max(
        0, min(widths[0] - NARROWEST_NAME, sum(widths) + len(GAP) * len(widths) + NARROWEST_TEXT - limit)
    )
    below = ["", *(under for _, under in branches)]
    colors = [None, *map(_color, rows)]
    return [
        part
        for line, under, color in zip(table, below, colors, strict=True)
        for part in _lines(line, widths, under, color, limit)
    ]


def _lines(cells: list[str], widths: list[int], under: str, color: Color | None, limit: int) -> list[str]:
    """The lines of one row; those behind the first have the bars of the tree ``under`` it."""
    left = GAP.join(
        cell.rjust(width) if number == 1 else shorten(cell, width).ljust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=False))
    )
    room = max(limit - len(left) - len(GAP), NARROWEST_TEXT // 2)
    texts = [part for text in wrap(cells[-1], room) for part in _pieces(text, room)] or [""]
    first = f"{left}{GAP}{texts[0]}".rstrip()
    below = under.ljust(len(left) + len(GAP))
    return [paint(first, color), *(f"{below}{paint(text, color)}" for text in texts[1:])]


def _color(row: Row) -> Color | None:
    if row.unreached and not row.losses:
        return "red"
    return None if row.frozen in ("no", "partly") else "blue"


def _pieces(text: str, width: int) -> list[str]:
    """``text`` in parts of at most ``width``; a longer name is split behind a dot, if it has one."""
    parts = []
    while len(text) > width:
        end = text.rfind(".", 0, width) + 1 or width
        parts.append(text[:end])
        text = text[end:]
    return [*parts, text]


def _branch(rows: Sequence[Row], index: int, signs: Glyphs) -> tuple[str, str]:
    """What stands before the name of a row, and in lines below it."""
    path = rows[index].module.split(".")
    bars = "".join(
        signs.bar if _follows(rows, index, path[:depth]) else " " * len(signs.bar)
        for depth in range(1, len(path))
    )
    more = _follows(rows, index, path)
    inner = (
        signs.bar if index + 1 < len(rows) and rows[index + 1].module.startswith(f"{'.'.join(path)}.") else ""
    )
    return bars + (signs.branch if more else signs.last), bars + (signs.bar if more else "   ") + inner


def _follows(rows: Sequence[Row], index: int, path: Sequence[str]) -> bool:
    """Whether a later row has the same parent as ``path``."""
    above = "".join(f"{part}." for part in path[:-1])
    later = (row.module for row in rows[index + 1 :])
    return any(name.startswith(above) and name.count(".") == len(path) - 1 for name in later)


def _name(row: Row, branch: str) -> str:
    return branch + shorten(row.module.rpartition(".")[2], LONGEST_NAME - len(branch))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        _count(row.parameters),
        STATES[row.frozen] if row.parameters or row.entries else "-",
        _states(row.norm_locked, row.norm_train, "locked", "train"),
        _states(row.dropout_off, row.dropout_on, "off", "on"),
        ",".join(map(str, row.groups)) or "-",
        "; ".join(_reasons(row)) or "-",
    )


def _states(one: int, other: int, first: str, second: str) -> str:
    """``3 locked``, ``2 train``, or ``3/5 locked``."""
    if one and other:
        return f"{one}/{one + other} {first}"
    return f"{one or other} {first if one else second}" if one or other else "-"


def _reasons(row: Row) -> list[str]:
    """Entries that freeze the module, heads whose loss trains it."""
    found = [", ".join(row.entries)] if row.entries else []
    if row.losses:
        found.append(f"loss of {', '.join(row.losses)}{' (not all of it)' if row.unreached else ''}")
    elif row.unreached:
        found.append("NO LOSS")
    return [*found, "gives no loss"] if row.head == "no loss" else found


def _count(number: int) -> str:
    if number < 10_000:
        return str(number)
    return f"{number / 1e3:.1f} k" if number < 1_000_000 else f"{number / 1e6:.2f} M"
