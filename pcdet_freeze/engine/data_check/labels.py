"""Findings about point labels and lane maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pcdet_freeze.engine.data_check.expected import DataFinding, Expected
from pcdet_freeze.engine.data_check.files import Frames

IGNORED = 0.95
"""share of points without a class"""
EMPTY = 0.5
"""share of lane maps without a line"""


def class_counts(frames: Frames) -> np.ndarray | None:
    """(C + 1,) points of each class over all frames, at the end those without one; None: no point labels."""
    found = [frame.point_classes for frame in frames if frame.point_classes is not None]
    return np.sum(found, axis=0) if found else None


def point_classes(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Points without a class, classes without a point."""
    counts = class_counts(frames)
    if counts is None or "point_labels" not in expected.learned:
        return
    share = counts[-1] / max(counts.sum(), 1)
    if share > IGNORED:
        yield DataFinding(
            "ignored_points",
            "error" if share == 1 else "warning",
            f"{share:.1%} of the {counts.sum()} labelled points have no class (255). Does LABEL_MAP list the "
            "values of the files under ignore?",
        )
    names = expected.semantic_class_names
    missing = [name for name, count in zip(names, counts[:-1], strict=False) if not count]
    if missing and share < 1 and expected.complete:
        yield DataFinding(
            "point_class_without_labels",
            "note",
            f"no point has the class {', '.join(missing)}; {len(names) - len(missing)} of {len(names)} occur",
        )


def lanes(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Lane maps without a line, numbers beyond those of the lane head."""
    counts = np.array([frame.lanes for frame in frames if frame.lanes is not None])
    if not len(counts) or "lane_map" not in expected.learned:
        return
    empty = int((counts == 0).sum())
    if empty > EMPTY * len(counts):
        yield DataFinding(
            "empty_lane_maps",
            "error" if empty == len(counts) and expected.complete else "warning",
            f"{empty} of {len(counts)} lane maps hold no line",
        )
    last = max(frame.last_lane for frame in frames)
    if expected.num_lanes is not None and last >= expected.num_lanes:
        yield DataFinding(
            "lane_numbers",
            "error",
            f"lane maps number lines up to {last}, but MODEL.LANE_HEAD.NUM_LANES is {expected.num_lanes}: "
            f"lines are 0 to {expected.num_lanes - 1}",
        )
