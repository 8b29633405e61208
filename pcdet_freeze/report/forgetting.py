"""The table of metrics before and after: what each task kept, gained or lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pcdet_freeze.evaluation.summary import SHOWN, title_of
from pcdet_freeze.report.html import table, tag, text
from pcdet_freeze.report.record import RunRecord, Task
from pcdet_freeze.report.tree import DETECTION

VERDICTS = {
    "identical": "kept: everything that it depends on is frozen, and its outputs are identical, bit for bit",
    "noise": "kept: all that it depends on is frozen; outputs differ as two runs of the same weights do",
    "drift": "its head is frozen, but {fed} trained: its outputs drifted by {drift}",
    "CHANGED": "CHANGED, although all that it depends on is frozen",
    "frozen": "its head is frozen; its outputs were not compared",
    "partly": "a part of its head is frozen, the rest trained",
    "trainable": "trained",
}
LOWER = ("chamfer", "error", "loss", "ATE", "ASE", "AOE", "AVE", "AAE")
"""in names of metrics of which less is better"""


@dataclass(frozen=True)
class Line:
    """One metric of one task."""

    task: str
    metric: str
    """its name in tables, with the IoU of an AP"""
    before: float | None
    proven: bool
    """whether ``before`` follows from identical outputs, and was not measured"""
    after: float | None

    @property
    def change(self) -> float | None:
        """After minus before; None where one of them is missing."""
        return None if self.before is None or self.after is None else self.after - self.before


def lines_of(record: RunRecord) -> list[Line]:
    """One line for each metric that a summary shows, grouped by task."""
    chosen = shown(dict.fromkeys([*record.after, *record.before]))
    kept = {task.name for task in record.tasks if task.state == "identical"}
    found = []
    order = [task.name for task in record.tasks]
    for key in sorted(chosen, key=lambda key: _place(task_of(key, record.tasks), order)):
        task, before, after = task_of(key, record.tasks), record.before.get(key), record.after.get(key)
        proven = before is None and after is not None and task in kept
        title = title_of(key, record.after if key in record.after else record.before)
        found.append(Line(task, title, after if proven else before, proven, after))
    return found


def _place(task: str, order: Sequence[str]) -> int:
    return order.index(task) if task in order else len(order)


def shown(keys: Sequence[str] | Mapping[str, object]) -> list[str]:
    """The metrics that a table shows: of KITTI's boxes AP 3D R40 moderate only, no recalls, all else."""
    boxes = [key for key in keys if key.endswith(SHOWN)]
    rest = [key for key in keys if not key.startswith("recall/")]
    return [key for key in rest if not boxes or key in boxes or not _is_kitti(key)]


def _is_kitti(key: str) -> bool:
    level = key.partition("/")[2]
    return level.endswith(("_R40", "_R11")) or level in ("easy", "moderate", "hard")


def task_of(key: str, tasks: Sequence[Task]) -> str:
    """The task that a metric belongs to, by its first word; detection for all others."""
    word = key.partition("/")[0]
    return next((t.name for t in tasks if word == t.name or word.startswith(f"{t.name}_")), DETECTION)


def verdict(task: Task, record: RunRecord) -> str:
    """What became of a task, in words."""
    worst = [value for head in task.heads for value in _differences(record, head)]
    drift = f"{max(worst):.1e} (relative L2)" if worst else "an unknown amount"
    fed = ", ".join(task.fed_by) or "a module before it"
    return VERDICTS.get(task.state, task.state).format(fed=fed, drift=drift)


def _differences(record: RunRecord, head: str) -> list[float]:
    found = (record.drift.get(head) or {}).get("relative_difference") or {}
    return [float(value) for value in found.values() if value is not None]


def draw_forgetting(record: RunRecord) -> str:
    """The verdict on each task, then the table."""
    verdicts = [
        [tag("b", text(task.name)), tag("code", text(", ".join(task.heads))), _colored(task, record)]
        for task in record.tasks
    ]
    lines = lines_of(record)
    rows = [
        [text(line.task), text(line.metric), _before(line), _figure(line.after), _change(line)]
        for line in lines
    ]
    parts = [table(["task", "head", "what became of it"], verdicts)] if verdicts else []
    if rows:
        parts.append(table(["task", "metric", "before", "after", "change"], rows, numbers=(2, 3, 4)))
    else:
        parts.append(tag("p", "No evaluation: --num_epochs_to_eval 1 evaluates the last checkpoint."))
    notes = [note for note in (record.before_source, record.after_source) if note]
    if any(line.proven for line in lines):
        notes.append("= : identical outputs give identical metrics; not measured at the start.")
    return "".join([*parts, *(tag("p", text(note), class_="soft") for note in notes)])


def _colored(task: Task, record: RunRecord) -> str:
    kind = {"identical": "good", "noise": "good", "CHANGED": "bad"}.get(task.state, "")
    words = text(verdict(task, record))
    return tag("span", words, class_=kind) if kind else words


def _before(line: Line) -> str:
    return f"= {_figure(line.after)}" if line.proven else _figure(line.before)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _change(line: Line) -> str:
    if line.change is None:
        return "-"
    if line.proven or line.change == 0:
        return tag("span", "0", class_="good")
    return f"{line.change:+.3f}"
