"""Table of the metrics of a model, one row per value, grouped by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

DETECTION = "detection"
SHOWN = "_3d/moderate_R40"


def table(boxes: Mapping[str, float], tasks: Mapping[str, float]) -> str:
    """Format the metrics as text with the columns task, metric, value.

    Args:
        boxes: values of a detection evaluator; of KITTI's values only AP 3D R40 moderate is shown, with its
            minimum overlap.
        tasks: ``{"task/metric": value}``, all of which are shown.
    """
    chosen = {key: value for key, value in boxes.items() if key.endswith(SHOWN)} or boxes
    rows = [(DETECTION, title_of(key, boxes), value) for key, value in chosen.items()]
    rows += [
        (task, metric, value) for key, value in tasks.items() for task, _, metric in [key.partition("/")]
    ]
    wide, wider = (max(len(str(row[column])) for row in [("task", "metric"), *rows]) for column in (0, 1))
    lines = [f"{'task':<{wide}}  {'metric':<{wider}}     value"]
    lines += [f"{task:<{wide}}  {metric:<{wider}}  {value:8.3f}" for task, metric, value in rows]
    return "\n".join(lines)


def title_of(key: str, metrics: Iterable[str]) -> str:
    """The name of a metric in tables: ``key``, and its minimum overlap where ``metrics`` say it.

    KITTI's ``Car_3d/moderate_R40`` has the first overlap of longer keys: ``Car_3d_0.70/moderate_R40``.
    """
    head, _, tail = key.rpartition("/")
    found = [other[len(head) + 1 : -len(tail) - 1] for other in metrics
             if other.startswith(f"{head}_") and other.endswith(f"/{tail}")]  # fmt: skip
    return f"{key} at IoU {found[0]}" if head and found else key
