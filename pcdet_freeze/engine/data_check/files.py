"""Findings about whole frames: files that cannot be read, labels that are nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pcdet_freeze.datasets.checks.frame_survey import FrameSurvey
from pcdet_freeze.datasets.reading.bad_data import shown
from pcdet_freeze.engine.data_check.expected import DataFinding, Expected

Frames = Sequence[FrameSurvey]
LABELS = {"gt_boxes": "boxes", "point_labels": "point labels", "lane_map": "a lane map"}


def bad_files(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Frames that cannot be read; an error where a training would end on them."""
    bad = [frame for frame in frames if frame.error]
    if not bad:
        return
    most = expected.policy.most(len(frames)) if expected.policy.skip else 0
    fatal = len(bad) == len(frames) or (expected.complete and len(bad) > most)
    rule = f", of which a training leaves out {most} at most" if fatal and len(bad) < len(frames) else ""
    yield DataFinding(
        "bad_files",
        "error" if fatal else "warning",
        f"{len(bad)} of {len(frames)} frames cannot be read{rule}: {shown([frame.name for frame in bad])}. "
        f"For example: {bad[0].error}",
    )


def missing_labels(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Labels that a head learns from and no frame has."""
    if not expected.complete or all(frame.error for frame in frames):
        return
    given = {
        "gt_boxes": any(frame.boxes is not None for frame in frames),
        "point_labels": any(frame.point_classes is not None for frame in frames),
        "lane_map": any(frame.lanes is not None for frame in frames),
    }
    for label, is_there in given.items():
        if label in expected.learned and not is_there:
            yield DataFinding(
                "missing_labels",
                "error",
                f"a head learns from {label}, but none of {len(frames)} frames has {LABELS[label]}",
            )
