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
    rows = [("", list(columns))]
    rows += [(n, [f.format(c[key]) if key in c else "-" for c in filled]) for n, key, f in ROWS]
    times = [column.get("seconds_per_iteration", {}).get("batch") for column in filled]
    rows += [("seconds per iteration (median)", ["-" if t is None else f"{t:.3f}" for t in times])]
    rows += [(name, list(cells)) for name, cells in last]
    width = max(len(cell) for _, cells in rows for cell in cells) + 2
    return "\n".join(f"{name:<37}" + "".join(f"{cell:>{width}}" for cell in cells) for name, cells in rows)


def _with_worst(figures: Mapping[str, Any]) -> dict[str, Any]:
    ious = [value for key, value in figures.items() if key.startswith("segmentation/IoU/")]
    return {**figures, "worst": min(ious)} if ious else dict(figures)
