"""All findings and figures of a data set, as text and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_freeze.datasets.checks.frame_survey import FrameSurvey
from pcdet_freeze.engine.data_check import boxes, files, labels, points
from pcdet_freeze.engine.data_check.boxes import boxes_by_class
from pcdet_freeze.engine.data_check.expected import Columns, DataFinding, Expected
from pcdet_freeze.engine.data_check.files import Frames
from pcdet_freeze.utils.terminal import Color, paint, shorten, wrap

HEAD = ("class", "boxes", "in range", "outside x, y, z", "empty", "points", "size (median, m)")
LEAST_NAME = 8
COLORS: dict[str, Color] = {"ERROR": "red", "WARNING": "yellow"}
Check = Callable[[Frames, Expected], Iterator[DataFinding]]
CHECKS: tuple[Check, ...] = (
    files.bad_files,
    files.missing_labels,
    points.points_in_range,
    points.column_ranges,
    points.column_ranges_of_sets,
    points.too_many_voxels,
    boxes.classes_without_labels,
    boxes.boxes_outside,
    boxes.empty_boxes,
    boxes.boxes_against_anchors,
    boxes.unnamed_classes,
    labels.point_classes,
    labels.lanes,
)
LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class DataReport:
    """What was read, what was expected, and what does not fit, the worst first."""

    frames: list[FrameSurvey]
    expected: Expected
    findings: list[DataFinding]

    @property
    def pointless(self) -> bool:
        """Whether a training on these data would be."""
        return any(finding.level == "error" for finding in self.findings)

    @property
    def read(self) -> list[FrameSurvey]:
        """The frames that could be read."""
        return [frame for frame in self.frames if not frame.error]

    @property
    def columns(self) -> Columns:
        """Range of each column of the points."""
        return points.columns_of_frames(self.read)


def judge(frames: list[FrameSurvey], expected: Expected) -> DataReport:
    """Compare ``frames`` with what is ``expected`` of them."""
    found = [finding for check in CHECKS for finding in check(frames, expected)]
    return DataReport(frames, expected, sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def to_plain(report: DataReport) -> dict[str, Any]:
    """Plain data, for JSON."""
    return {
        "frames": len(report.frames),
        "bad_frames": {frame.name: frame.error for frame in report.frames if frame.error},
        "points": _points(report),
        "columns": {name: list(values) for name, values in report.columns.items()},
        "boxes": {row["class"]: row for row in class_rows(report)},
        "point_classes": _point_classes(report),
        "lanes": _spread([frame.lanes for frame in report.read if frame.lanes is not None]),
        "voxels": {**_spread([frame.voxels for frame in report.read if frame.voxels]),
                   "limits": dict(report.expected.max_voxels)},
        "findings": [vars(finding) for finding in report.findings],
        "pointless": report.pointless,
    }  # fmt: skip


def _points(report: DataReport) -> dict[str, Any]:
    total = sum(frame.points for frame in report.read)
    share = sum(frame.in_range for frame in report.read) / total if total else 0.0
    return {**_spread([frame.points for frame in report.read]), "share_in_range": share}


def _spread(values: list[int]) -> dict[str, float]:
    """Least, median and greatest value; empty without values."""
    if not values:
        return {}
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def class_rows(report: DataReport) -> list[dict[str, Any]]:
    """A row for each class of boxes: counts, boxes outside by axis, points, size."""
    limits, rows = report.expected.limits, []
    for name, own in boxes_by_class(report.read, report.expected).items():
        if not len(own) and not any(frame.boxes is not None for frame in report.read):
            continue
        low, high = (own.boxes[:, :3] < limits[:3]), (own.boxes[:, :3] > limits[3:])
        inside = own.points[own.inside]
        rows.append({
            "class": name,
            "trained": name in report.expected.class_names,
            "boxes": len(own),
            "in_range": int(own.inside.sum()),
            "outside": dict(zip("xyz", (low | high).sum(axis=0).tolist(), strict=True)),
            "empty": int((inside == 0).sum()),
            "points": float(np.median(inside)) if len(inside) else None,
            "size": np.median(own.boxes[:, 3:6], axis=0).round(2).tolist() if len(own) else None,
        })  # fmt: skip
    return rows


def _point_classes(report: DataReport) -> dict[str, int]:
    counts = labels.class_counts(report.read)
    if counts is None:
        return {}
    names = report.expected.semantic_class_names or tuple(map(str, range(len(counts) - 1)))
    return dict(zip((*names, "no class"), counts.tolist(), strict=False))


def as_text(report: DataReport, limit: int = 80) -> str:
    """Figures, then a table of the boxes, then the findings, in lines of ``limit`` characters."""
    figures = [line for text in _figures(report) for line in wrap(text[14:], limit, " " * 14, text[:14])]
    found = [part for line in finding_lines(report) for part in _finding(line, limit)]
    return "\n".join([*figures, "", *_class_table(report, limit), "", *found])


def _finding(line: str, limit: int) -> list[str]:
    level = line.partition(":")[0]
    first, *rest = wrap(line, limit, "  ", "")
    return [first.replace(level, paint(level, COLORS.get(level)), 1), *rest]


def finding_lines(report: DataReport) -> list[str]:
    """One line for each finding."""
    lines = [f"{finding.level.upper()}: {finding.text}" for finding in report.findings]
    return lines or ["Nothing found: the data fit the config."]


def _figures(report: DataReport) -> Iterator[str]:
    given = to_plain(report)
    yield f"{'frames':<14}{given['frames']}, of which {len(given['bad_frames'])} cannot be read"
    if given["points"].get("max"):
        yield f"{'points':<14}{_words(given['points'])}; {given['points']['share_in_range']:.1%} in range"
    for name, values in report.columns.items():
        yield f"{name:<14}{values[0]:g} to {values[-1]:g}, median {values[2]:.3g}, 99 %: {values[3]:.3g}"
    if given["voxels"].get("max"):
        limits = ", ".join(f"{most} ({mode})" for mode, most in report.expected.max_voxels.items())
        yield f"{'voxels':<14}{_words(given['voxels'])}; MAX_NUMBER_OF_VOXELS {limits or 'none'}"
    if given["lanes"]:
        yield f"{'lanes':<14}{_words(given['lanes'])}"
    if given["point_classes"]:
        total = sum(given["point_classes"].values())
        listed = [f"{name} {count / total:.1%}" for name, count in given["point_classes"].items() if count]
        yield f"{'point classes':<14}{', '.join(listed)}"


def _words(spread: dict[str, float]) -> str:
    return f"{spread['min']:g} to {spread['max']:g} a frame, median {spread['median']:g}"


def _class_table(report: DataReport, limit: int) -> Iterator[str]:
    rows = class_rows(report)
    if not rows:
        return
    lines = [HEAD, *map(_class_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = max(LEAST_NAME, min(widths[0], limit - sum(widths[1:]) - 2 * (len(HEAD) - 1)))
    for name, *others, size in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False)]
        yield "  ".join([shorten(name, widths[0]).ljust(widths[0]), *cells, size])
    if not all(row["trained"] for row in rows):
        yield "* not in CLASS_NAMES: not trained"


def _class_cells(row: dict[str, Any]) -> tuple[str, ...]:
    outside = ", ".join(map(str, row["outside"].values()))
    size = " x ".join(f"{edge:g}" for edge in row["size"]) if row["size"] else "-"
    middle = "-" if row["points"] is None else f"{row['points']:g}"
    name = row["class"] if row["trained"] else f"{row['class']}*"
    return name, str(row["boxes"]), str(row["in_range"]), outside, str(row["empty"]), middle, size


def worst_frames(report: DataReport, count: int) -> list[FrameSurvey]:
    """The ``count`` frames with the most faults; frames without any are left out."""
    scored = [(_badness(frame, report.expected), frame) for frame in report.read]
    faulty = sorted((pair for pair in scored if pair[0] > 0), key=lambda pair: -pair[0])
    return [frame for _, frame in faulty[:count]]


def _badness(frame: FrameSurvey, expected: Expected) -> float:
    """Boxes outside or empty, voxels beyond the limit, points outside: a number, 0 for none."""
    limit = min(expected.max_voxels.values(), default=0)
    bad = float(max(frame.voxels / limit - 1, 0)) if limit else 0.0
    if frame.boxes is not None:
        mine = np.isin(frame.names, expected.class_names)
        centres = frame.boxes[:, :3]
        inside = ((centres >= expected.limits[:3]) & (centres <= expected.limits[3:])).all(axis=1)
        bad += float((mine & ~inside).sum() + (mine & inside & (frame.box_points == 0)).sum())
    if frame.points and frame.in_range < points.FEW * frame.points:
        bad += 1.0
    return bad
