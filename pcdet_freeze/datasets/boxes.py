"""What a labelled box can be: the limits that labels, infos and databases share."""

from __future__ import annotations

import numpy as np

SMALLEST, LARGEST = 0.01, 100.0
"""metres, of each edge of a box"""
FARTHEST = 10_000.0
"""metres from the sensor, of points and boxes: no LiDAR sees further"""


def box_fault(centres: np.ndarray, sizes: np.ndarray, headings: np.ndarray) -> str:
    """What is wrong with the first impossible box; empty where there is none.

    Args:
        centres, sizes: (N, 3) metres.
        headings: (N,) radians.
    """
    values = np.column_stack([centres, headings])
    # one comparison for all: NaN compares as False
    if (np.abs(values) <= FARTHEST).all() and ((sizes >= SMALLEST) & (sizes <= LARGEST)).all():
        return ""
    rows = np.column_stack([centres, sizes, headings]).astype(np.float64)
    for number, row in enumerate(rows):
        text = ", ".join(f"{value:g}" for value in row)
        if not np.isfinite(row).all():
            return f"box {number} holds NaN or inf: {text}"
        if not ((row[3:6] >= SMALLEST) & (row[3:6] <= LARGEST)).all():
            return f"box {number} must have edges of {SMALLEST} to {LARGEST:g} m; got {text}"
        if (np.abs(row) > FARTHEST).any():
            return f"box {number} must lie within {FARTHEST:g} m; got {text}"
    return ""


def rows_of(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 7+) with all their columns, velocities too; numbers of another shape as rows of seven."""
    found = np.asarray(boxes)
    return found if found.ndim == 2 and found.shape[1] >= 7 else found.reshape(-1, 7)
