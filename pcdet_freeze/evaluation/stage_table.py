"""Table of the stages of a multi-task training, with one column per stage, and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROWS = (
    ("iterations", "iterations", "{}"),
    ("Car AP 3D R40, moderate, IoU 0.5", "Car_3d_0.50/moderate_R40", "{:.1f}"),
    ("segmentation mIoU", "segmentation/mIoU", "{:.1f}"),
    ("segmentation, IoU of the worst class", "worst", "{:.1f}"),
    ("lane F1, one cell of tolerance", "lane/F1", "{:.3f}"),
    ("lane class F1", "lane/class_F1", "{:.3f}"),
    ("lane polylines, Chamfer distance, m", "lane/chamfer_m", "{:.2f}"),
    ("boxes", "boxes", "{}"),
)


def stage_table(columns: Mapping[str, Mapping[str, Any]], last: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Format the results of all stages as text; missing values are shown as a dash.

    Args:
        columns: title of the column -> values with the keys of ``result.json`` and ``run.json``.
        last: additional rows, name and cells.
    """
    filled = [_with_worst(figures) for figures in columns.values()]
    titles = zip(*map(_two_lines, columns), strict=True)
    rows = [("", list(parts)) for parts in titles if any(parts)]
    rows += [(n, [f.format(c[key]) if key in c else "-" for c in filled]) for n, key, f in ROWS]
    times = [column.get("seconds_per_iteration", {}).get("batch") for column in filled]
    rows += [("seconds per iteration (median)", ["-" if t is None else f"{t:.3f}" for t in times])]
    rows += [(name, list(cells)) for name, cells in last]
    first = max(len(name) for name, _ in rows)
    widths = [max(map(len, cells)) for cells in zip(*(cells for _, cells in rows), strict=True)]
    lines = (
        f"{name:<{first}}" + "".join(f"  {cell:>{wide}}" for cell, wide in zip(cells, widths, strict=True))
        for name, cells in rows
    )
    return "\n".join(lines)


def _two_lines(title: str) -> tuple[str, str]:
    """The parts of a title, in two lines so that the table fits 80 columns."""
    above, _, below = title.partition(" ")
    return (above, below) if below else ("", above)


def _with_worst(figures: Mapping[str, Any]) -> dict[str, Any]:
    ious = [value for key, value in figures.items() if key.startswith("segmentation/IoU/")]
    return {**figures, "worst": min(ious)} if ious else dict(figures)
