"""Several runs side by side: what was frozen, metrics, cost, and the config keys in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcdet_freeze.evaluation.summary import title_of
from pcdet_freeze.report.forgetting import shown
from pcdet_freeze.report.html import page, section, table, tag, text
from pcdet_freeze.report.record import RunRecord
from pcdet_freeze.report.run_page import duration

LACKING = "-"


@dataclass(frozen=True)
class Group:
    """Rows about one thing."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """(what, one cell for each run)"""


def compare_runs(records: Sequence[RunRecord]) -> list[Group]:
    """The rows of a comparison; a run without a figure has a dash."""
    return [
        Group("frozen", tuple(_frozen(records))),
        Group("tasks", tuple(_tasks(records))),
        Group("metrics", tuple(_metrics(records))),
        Group("cost", tuple(_cost(records))),
        Group("config keys that differ", tuple(_keys(records))),
    ]


def titles_of(records: Sequence[RunRecord]) -> list[str]:
    """Short names of the runs, all different: the last parts of their folders that tell them apart."""
    parts = [tuple(record.folder.rstrip("/").split("/")) or (record.name,) for record in records]
    for count in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {record.name}" for number, record in enumerate(records, 1)]


def _frozen(records: Sequence[RunRecord]) -> Iterator[tuple[str, tuple[str, ...]]]:
    entries = dict.fromkeys(entry for record in records for entry in record.entries)
    yield "parameters frozen", tuple(f"{r.parameters_frozen:,} of {r.parameters:,}" for r in records)
    for entry in entries:
        yield entry, tuple("frozen" if entry in record.entries else LACKING for record in records)
    digests = [
        r.certificate.digest[:12] if r.certificate and r.certificate.tensors else LACKING for r in records
    ]
    yield "digest of the frozen state", tuple(digests)
    yield "schedule", tuple("; ".join(record.schedule) or LACKING for record in records)


def _tasks(records: Sequence[RunRecord]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in dict.fromkeys(task.name for record in records for task in record.tasks):
        states = [{task.name: task.state for task in record.tasks} for record in records]
        yield name, tuple(found.get(name, LACKING) for found in states)


def _metrics(records: Sequence[RunRecord]) -> Iterator[tuple[str, tuple[str, ...]]]:
    keys = shown(dict.fromkeys(key for record in records for key in record.after))
    # one key may stand for different overlaps in two runs (EVALUATION.IOU): these are two rows
    found = [{title_of(key, r.after): r.after[key] for key in keys if key in r.after} for r in records]
    for title in dict.fromkeys(title for values in found for title in values):
        yield title, tuple(_number(values.get(title)) for values in found)


def _cost(records: Sequence[RunRecord]) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "iterations", tuple(str(record.iterations) for record in records)
    yield "seconds a step (median)", tuple(_number(r.seconds_per_iteration.get("batch")) for r in records)
    yield "duration", tuple(duration(record.seconds) for record in records)
    for kind in dict.fromkeys(kind for record in records for kind in record.peak_bytes):
        found = (record.peak_bytes.get(kind) for record in records)
        yield f"peak memory of the {kind}", tuple(f"{v / 1e9:.2f} GB" if v else LACKING for v in found)
    yield "warnings", tuple(str(len(record.warnings)) for record in records)
    yield "outcome", tuple(record.outcome.partition("\n")[0] for record in records)


def _keys(records: Sequence[RunRecord]) -> Iterator[tuple[str, tuple[str, ...]]]:
    flat = [dict(_flat(record.config)) for record in records]
    for key in dict.fromkeys(key for values in flat for key in values):
        cells = tuple(values.get(key, LACKING) for values in flat)
        if len(set(cells)) > 1:
            yield key, cells


def _flat(value: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key -> value as JSON; lists of mappings are followed, too."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{above}.{key}" if above else str(key))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{above}.{number}")
    else:
        yield above, json.dumps(value, default=str)


def _number(value: float | None) -> str:
    return LACKING if value is None else f"{value:.3f}"


def comparison_body(records: Sequence[RunRecord]) -> str:
    """The tables of a comparison as HTML; rows whose cells differ are bold."""
    titles = titles_of(records)
    return "".join(
        section(group.title.capitalize(), table(["", *titles], [_row(*row) for row in group.rows]))
        for group in compare_runs(records)
        if group.rows
    )


def _row(name: str, cells: Sequence[str]) -> list[str]:
    differs = len(set(cells)) > 1
    return [text(name), *(tag("b", text(cell)) if differs else text(cell) for cell in cells)]


def comparison_page(records: Sequence[RunRecord]) -> str:
    """A whole page."""
    title = "Comparison of " + ", ".join(titles_of(records))
    return page(title, tag("h1", text(title)), comparison_body(records))


def comparison_plain(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Plain data, for JSON: run -> group -> what -> value as text."""
    groups = compare_runs(records)
    return {
        title: {group.title: {name: cells[number] for name, cells in group.rows} for group in groups}
        for number, title in enumerate(titles_of(records))
    }
