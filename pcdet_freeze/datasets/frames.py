"""Small steps on one sample: keep some of its points or boxes together with what belongs to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.errors import DataError

IGNORE = 255
"""Label of a point without a class, and value of a lane-map cell that nothing is known of."""

POINT_KEYS = ("points", "point_labels")
BOX_KEYS = ("gt_boxes", "gt_names")


def keep_points(sample: Sample, which: np.ndarray) -> None:
    """Keep the points that ``which`` (mask or indices) picks, and their labels, in that order."""
    _keep(sample, POINT_KEYS, which)


def keep_boxes(sample: Sample, which: np.ndarray) -> None:
    """Keep the ground-truth boxes that ``which`` (mask or indices) picks, and their names."""
    _keep(sample, BOX_KEYS, which)


def _keep(sample: Sample, keys: tuple[str, ...], which: np.ndarray) -> None:
    for key in keys:
        if sample.get(key) is not None:
            sample[key] = sample[key][which]


def check_points(points: np.ndarray, source: Any) -> np.ndarray:
    """``points`` (N, C) if every value is finite, else DataError that says how many rows are not."""
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{source}: points must be finite in every column (intensity too); {int((~finite).sum())} of "
            f"{len(points)} points hold NaN or inf. Repair the file or take the frame out of the split"
        )
    return points
