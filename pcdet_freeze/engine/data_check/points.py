"""Findings about points: how many are in range, their columns, the voxels that they fill."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pcdet_freeze.engine.data_check.expected import Columns, DataFinding, Expected
from pcdet_freeze.engine.data_check.files import Frames

FEW, NONE = 0.05, 0.01
"""share of the points in range that is a warning, and an error"""
OTHER_RANGE = 4.0
"""factor between two ranges of a column that are not of one scale"""
TOP = 3
"""place of the 99 % quantile"""


def points_in_range(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Few points in POINT_CLOUD_RANGE."""
    points = sum(frame.points for frame in frames)
    share = sum(frame.in_range for frame in frames) / max(points, 1)
    if points and share < FEW:
        yield DataFinding(
            "points_in_range",
            "error" if share < NONE else "warning",
            f"{share:.1%} of {points} points lie in POINT_CLOUD_RANGE {expected.limits.round(2).tolist()}",
        )


def columns_of_frames(frames: Frames) -> Columns:
    """Least value, 1 %, median, 99 %, greatest of each column; medians of what the frames have."""
    found: Columns = {}
    for name in dict.fromkeys(name for frame in frames for name in frame.columns):
        rows = np.array([frame.columns[name] for frame in frames if name in frame.columns])
        inner = np.median(rows[:, 1:-1], axis=0).tolist()
        found[name] = (float(rows[:, 0].min()), *inner, float(rows[:, -1].max()))
    return found


def column_ranges(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Columns that are constant, or of another range than those of the pretrained checkpoint."""
    for name, values in columns_of_frames(frames).items():
        if values[0] == values[-1] and sum(frame.points for frame in frames) > 1:
            yield DataFinding("column_range", "warning", f"{name} is {values[0]:g} in all points")
        elif name in expected.seen and _differ(values, expected.seen[name]):
            yield DataFinding(
                "column_range",
                "warning",
                f"{name} is {_text(values)}, but the pretrained checkpoint saw {_text(expected.seen[name])}. "
                "Scale the column as it was there",
            )


def column_ranges_of_sets(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Columns of another range in one set of a joined one than in another."""
    parts = dict.fromkeys(frame.part for frame in frames)
    found = {part: columns_of_frames([frame for frame in frames if frame.part == part]) for part in parts}
    for name in dict.fromkeys(name for columns in found.values() for name in columns):
        given = {part: columns[name] for part, columns in found.items() if name in columns}
        ranges = {part: values for part, values in given.items() if values[0] != values[-1]}
        order = sorted(ranges, key=lambda part: ranges[part][TOP])
        if len(order) < 2:
            continue
        low, high = order[0], order[-1]
        if _differ(ranges[low], ranges[high]):
            yield DataFinding(
                "column_range_of_sets",
                "warning",
                f"{name} is {_text(ranges[low])} in {low}, but {_text(ranges[high])} in {high}",
            )


def _differ(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    small, large = sorted((abs(one[TOP]), abs(other[TOP])))
    return large > OTHER_RANGE * max(small, 1e-3)


def _text(values: tuple[float, ...]) -> str:
    return f"{values[0]:g} to {values[-1]:g} (99 % of the points: up to {values[TOP]:.3g})"


def too_many_voxels(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Frames that fill more voxels than MAX_NUMBER_OF_VOXELS."""
    counts = np.array([frame.voxels for frame in frames if not frame.error])
    for mode, most in expected.max_voxels.items():
        over = counts[counts > most]
        if len(over):
            yield DataFinding(
                "too_many_voxels",
                "warning",
                f"{len(over)} of {len(counts)} frames fill more voxels than MAX_NUMBER_OF_VOXELS.{mode} "
                f"({most}): up to {over.max()}, of which {1 - most / over.max():.0%} are dropped",
            )
