"""``report.html`` of one run."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pcdet_freeze.report.curves import draw
from pcdet_freeze.report.forgetting import draw_forgetting
from pcdet_freeze.report.html import fold, page, section, table, tag, text
from pcdet_freeze.report.record import RunRecord
from pcdet_freeze.report.tree import draw_tree

LR, VALIDATION_LOSS = "learning rate", "validation loss"
"""names of curves"""
LARGEST = 8_000_000
"""bytes of one picture"""


def run_page(record: RunRecord, folder: Path) -> str:
    """The whole page; pictures are read from ``folder``, where the run wrote them."""
    return page(f"Training report: {record.name}", body_of(record, folder))


def body_of(record: RunRecord, folder: Path) -> str:
    """The report without the frame of the page, for a page of several runs."""
    return "".join([_head(record), *_sections(record, folder)])


def _head(record: RunRecord) -> str:
    kind = "good" if record.outcome == "finished" else "bad"
    share = record.parameters_frozen / record.parameters if record.parameters else 0.0
    facts = [
        ("frozen parameters", f"{share:.1%}"),
        ("iterations", f"{record.iterations:,}"),
        ("duration", duration(record.seconds)),
        ("seconds a step (median)", _seconds(record)),
        ("warnings", str(sum(int(one.get("count", 1)) for one in record.warnings))),
    ]
    outcome = tag("span", text(record.outcome), class_=kind)
    return "".join(
        [
            tag("h1", text(record.name)),
            tag("p", outcome, tag("span", text(f" · {record.finished} · {record.folder}"), class_="soft")),
            tag("p", text(record.summary)),
            tag("div", *(tag("div", tag("b", text(v)), text(k), class_="fact") for k, v in facts),
                class_="facts"),
        ]
    )  # fmt: skip


def _sections(record: RunRecord, folder: Path) -> list[str]:
    return [
        section("Tasks before and after", draw_forgetting(record)),
        section("Proof", _proof(record)),
        section("What was frozen", _frozen(record)),
        section("Loss and learning rate", _curves(record)),
        section("Memory and time", _cost(record)),
        section("Frames", _pictures(record, folder)),
        section("Warnings", _warnings(record)),
        section("Run it again", _again(record)),
        section("Environment", table(["", ""], _pairs(record.environment))),
    ]


def _proof(record: RunRecord) -> str:
    certificate = record.certificate
    parts = []
    if certificate is not None and certificate.tensors:
        count = len(certificate.tensors)
        words = (
            f"Certificate intact: the {count} frozen tensors are the same as at the start of this run, bit "
            "for bit; checked after the first step, after each epoch, at every checkpoint and at the end."
        )
        if record.outcome not in ("finished", "stopped early"):
            words = f"The run ended with an error: the digests are those of its {count} tensors at that time."
        rows = [[tag("code", text(n)), tag("code", text(d))] for n, d in certificate.tensors.items()]
        digest = f"{certificate.algorithm} of all digests: "
        parts += [
            tag("p", text(words)),
            tag("p", text(digest), tag("code", text(certificate.digest))),
            fold(text(f"{count} digests"), table(["tensor", "type, shape and digest"], rows)),
        ]
    elif record.entries:
        parts.append(tag("p", "No frozen tensor is left at the end: the schedule released all of them."))
    else:
        parts.append(tag("p", "Nothing was frozen."))
    if record.drift:
        rows = [[tag("code", text(name)), *_behaviour(found)] for name, found in record.drift.items()]
        parts.append(table(["outputs of", "verdict", "largest relative difference (L2)", "fed by"], rows))
    elif record.entries:
        parts.append(tag("p", "No module is frozen as a whole: there were no outputs to compare."))
    return "".join(parts)


def _behaviour(found: Mapping[str, Any]) -> list[str]:
    values = [float(v) for v in (found.get("relative_difference") or {}).values() if v is not None]
    kind = str(found.get("verdict"))
    mark = {"identical": "good", "noise": "good", "CHANGED": "bad"}.get(kind, "")
    largest = "0" if not any(values) else f"{max(values):.1e}"
    return [tag("span", text(kind), class_=mark or "state partly"), largest,
            text(", ".join(found.get("fed_by") or []) or "frozen modules only")]  # fmt: skip


def _frozen(record: RunRecord) -> str:
    entries = yaml.safe_dump({"NOT_TRAIN_IN_MULTI_TASK": record.entries}, default_flow_style=None, width=100)
    parts = [tag("pre", text("MODEL:\n    " + entries.replace("\n", "\n    ").rstrip()))]
    parts += [tag("p", text(f"Schedule: {line}")) for line in record.schedule]
    parts += [tag("p", text(f"Note: {line}"), class_="soft") for line in record.notes]
    return "".join([*parts, draw_tree(record.tree)])


def _curves(record: RunRecord) -> str:
    losses = {name: points for name, points in record.curves.items() if name != LR}
    total = {name: points for name, points in losses.items() if name in ("loss", VALIDATION_LOSS)}
    others = {name: points for name, points in losses.items() if name not in total}
    drawn = [
        draw("loss", total, log=True),
        draw("losses by part", others, log=True),
        draw(LR, {LR: record.curves.get(LR, [])}),
    ]
    return tag("div", *drawn, class_="curves") if any(drawn) else tag("p", "No iteration was trained.")


def _cost(record: RunRecord) -> str:
    rows = [["training and evaluation", duration(record.seconds)]]
    rows += [
        [f"{text(name)}, median of a step", f"{value:.3f} s"]
        for name, value in record.seconds_per_iteration.items()
    ]
    rows += [
        [f"peak memory of the {text(n)}", f"{value / 1e9:.2f} GB"] for n, value in record.peak_bytes.items()
    ]
    frozen, nothing = record.savings.get("frozen"), record.savings.get("nothing_frozen")
    if frozen and nothing:
        rows += [
            ["a step with the list / without it", _saved(frozen, nothing, "seconds", 1, "s")],
            ["tensors at the peak, with / without", _saved(frozen, nothing, "peak_bytes", 1e9, "GB")],
        ]
        note = ""
    else:
        note = (
            "What freezing saves was not measured: a run of at least 1000 iterations measures it, without "
            "--no_savings; pcdet-freeze bench measures it at any time."
        )
    return table(["", ""], rows) + (tag("p", text(note), class_="soft") if note and record.entries else "")


def _saved(frozen: Mapping[str, Any], nothing: Mapping[str, Any], key: str, unit: float, name: str) -> str:
    now, then = float(frozen[key]) / unit, float(nothing[key]) / unit
    share = f", {1 - now / then:.0%} saved" if then else ""
    return f"{now:.3g} / {then:.3g} {name}{share}"


def _pictures(record: RunRecord, folder: Path) -> str:
    drawn = []
    for picture in record.pictures:
        source = _embedded(folder, picture.file)
        if source:
            image = tag("img", src=source, alt=picture.name)
            drawn.append(tag("figure", image, tag("figcaption", text(f"{picture.name}: {picture.note}"))))
    note = tag("p", text(record.pictures_note), class_="soft") if record.pictures_note else ""
    return "".join(drawn) + note


def _embedded(folder: Path, name: str) -> str:
    """The PNG as a data URL; "" for a file that is not there, too large, or outside of ``folder``."""
    file = folder / name
    try:
        if not file.resolve().is_relative_to(folder.resolve()) or file.stat().st_size > LARGEST:
            return ""
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    except OSError:
        return ""


def _warnings(record: RunRecord) -> str:
    if not record.warnings:
        return tag("p", "The log has no warning.")
    rows = [
        [text(w.get("time", "")), text(w.get("count", 1)), text(w.get("text", ""))] for w in record.warnings
    ]
    return table(["first", "times", "warning"], rows)


def _again(record: RunRecord) -> str:
    parts = [tag("pre", text(record.command))] if record.command else []
    if record.checks:
        parts += [
            tag("p", "What this report claims can be checked:"),
            tag("pre", text("\n".join(record.checks))),
        ]
    config = yaml.safe_dump(record.config, sort_keys=False, default_flow_style=None, width=100)
    return "".join([*parts, fold("the whole config, bases and --set included", tag("pre", text(config)))])


def _pairs(values: Mapping[str, object]) -> Iterable[list[str]]:
    return [[text(key), text(value)] for key, value in values.items()]


def _seconds(record: RunRecord) -> str:
    value = record.seconds_per_iteration.get("batch")
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 20 s`` or ``4.1 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return (
        f"{minutes} min {int(seconds % 60):02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )
