"""Metrics of tasks other than detection: counts per frame, summed over all frames.

The metric of a task is one class, registered in ``TASK_METRICS``. It is used if the model predicts the key
that it reads, for the frames that have its label. Counts have a fixed size, so memory does not grow with the
number of points, and frames can be counted in any order and on any rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pcdet_freeze.registry import Registry

Counts = dict[str, Any]
"""Counts of one frame: numbers or arrays of a fixed shape; frames are added key by key."""


@dataclass(frozen=True)
class MetricContext:
    """Information about the data set for metrics."""

    semantic_class_names: tuple[str, ...] = ()
    """names of the semantic classes 0, 1, ..."""
    point_cloud_range: tuple[float, ...] = ()
    """[x_min, y_min, z_min, x_max, y_max, z_max] in metres, the extent of a lane map"""
    absent_classes_count: bool = False
    """a mean over semantic classes includes those without a labelled point, as 0"""


class TaskMetric:
    """Base class of the metrics in ``TASK_METRICS``."""

    prediction: ClassVar[str]
    """key of a prediction dict that the task requires"""
    label: ClassVar[str]
    """key of the batch with the ground truth"""
    per_point: ClassVar[bool]
    """True: the ground truth is (N,), one row per point of the batch; False: (B, ...), one row per frame"""
    extra_keys: ClassVar[tuple[str, ...]] = ()
    """keys of the batch with one row per point, which are added to the prediction for ``count``"""

    def __init__(self, context: MetricContext) -> None:
        self.context = context

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """Compare the ground truth of one frame with its prediction (numpy arrays).

        Raises:
            DataError: their shapes or values do not match.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement count")

    def summarise(self, total: Counts) -> dict[str, float]:
        """``{"task/metric": value}`` from the summed counts; undefined values are omitted."""
        raise NotImplementedError(f"{type(self).__name__} must implement summarise")


TASK_METRICS: Registry[type[TaskMetric]] = Registry("TASK_METRIC")


def add_up(frames: Sequence[Counts]) -> Counts:
    """Sum by key; missing keys count as zero."""
    total: Counts = {}
    for frame in frames:
        for key, value in frame.items():
            total[key] = total[key] + value if key in total else value
    return total


def ratio(part: float, whole: float) -> float:
    """``part / whole``, or 0 if ``whole`` is 0."""
    return float(part) / float(whole) if whole else 0.0
