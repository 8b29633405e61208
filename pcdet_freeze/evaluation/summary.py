"""One table of what a model does: a line a figure, tasks one after the other."""

from __future__ import annotations

from collections.abc import Mapping

DETECTION = "detection"
SHOWN = "_3d/moderate_R40"


def table(boxes: Mapping[str, float], tasks: Mapping[str, float]) -> str:
    """Text with the columns task, metric, value.

    Args:
        boxes: what an evaluator of boxes gave; of KITTI's many figures only AP 3D R40 moderate is shown.
        tasks: ``{"task/metric": value}``, shown whole.
    """
    chosen = {key: value for key, value in boxes.items() if key.endswith(SHOWN)} or boxes
    rows = [(DETECTION, key, value) for key, value in chosen.items()]
    rows += [
        (task, metric, value) for key, value in tasks.items() for task, _, metric in [key.partition("/")]
    ]
    wide, wider = (max(len(str(row[column])) for row in [("task", "metric"), *rows]) for column in (0, 1))
    lines = [f"{'task':<{wide}}  {'metric':<{wider}}     value"]
    lines += [f"{task:<{wide}}  {metric:<{wider}}  {value:8.3f}" for task, metric, value in rows]
    return "\n".join(lines)
