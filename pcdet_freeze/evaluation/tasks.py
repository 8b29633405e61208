"""Metrics of the tasks besides boxes: counts of one frame, summed up over all of them.

A task's metric is one class here, registered in ``TASK_METRICS``. It runs by itself wherever a model
predicts what it reads, for the frames that have its label. Counts are small and a frame's own, so memory
does not grow with the clouds, and frames can be counted in any order, by any rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pcdet_freeze.registry import Registry

Counts = dict[str, Any]
"""What one frame adds: numbers or arrays of a fixed shape; frames are added key by key."""


@dataclass(frozen=True)
class MetricContext:
    """What a metric may know of the data set."""

    semantic_class_names: tuple[str, ...] = ()
    """name of semantic class 0, 1, ..."""
    point_cloud_range: tuple[float, ...] = ()
    """[x_min, y_min, z_min, x_max, y_max, z_max] in metres, which a lane map covers"""


class TaskMetric:
    """Base of what ``TASK_METRICS`` holds."""

    prediction: ClassVar[str]
    """key of a prediction dict without which the task is not predicted"""
    label: ClassVar[str]
    """key of the batch with the truth"""
    per_point: ClassVar[bool]
    """True: the truth is (N,), a row a point of the batch; False: (B, ...), a row a frame"""
    beside: ClassVar[tuple[str, ...]] = ()
    """further keys of the batch with a row a point, which ``count`` finds beside the prediction"""

    def __init__(self, context: MetricContext) -> None:
        self.context = context

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """Compare one frame's truth with its prediction (numpy), and what it asks for in ``beside``.

        DataError where they do not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} must count what a frame shows")

    def summarise(self, total: Counts) -> dict[str, float]:
        """``{"task/metric": value}`` from the added counts; what cannot be told is left out."""
        raise NotImplementedError(f"{type(self).__name__} must say what the counts mean")


TASK_METRICS: Registry[type[TaskMetric]] = Registry("TASK_METRIC")


def add_up(frames: Sequence[Counts]) -> Counts:
    """Key-wise sum; a key that a frame lacks adds nothing."""
    total: Counts = {}
    for frame in frames:
        for key, value in frame.items():
            total[key] = total[key] + value if key in total else value
    return total


def ratio(part: float, whole: float) -> float:
    """``part / whole``, 0 where there is nothing."""
    return float(part) / float(whole) if whole else 0.0
