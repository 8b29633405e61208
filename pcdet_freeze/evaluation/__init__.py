"""Metrics: truth and predictions in, a flat dict of figures out. Imports neither datasets nor models.

* boxes: ``EVALUATORS.get(name)(gt_annos, dt_annos, class_names) -> (text, dict)``, chosen by the config;
* other tasks: a class in ``TASK_METRICS`` (see ``tasks``), which runs wherever a model predicts the task.

Another metric is one more function or class, registered under one more name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# importing the modules registers their metrics
from pcdet_freeze.evaluation import lanes, segmentation
from pcdet_freeze.evaluation.summary import table
from pcdet_freeze.evaluation.tasks import TASK_METRICS, MetricContext, TaskMetric
from pcdet_freeze.registry import Registry

Annotation = Mapping[str, Any]
Annotations = Sequence[Annotation]
Evaluator = Callable[[Annotations, Annotations, Sequence[str]], tuple[str, dict[str, float]]]

EVALUATORS: Registry[Evaluator] = Registry("MODEL.POST_PROCESSING.EVAL_METRIC")


@EVALUATORS.register_as("kitti")
def evaluate_kitti(
    gt_annos: Annotations, dt_annos: Annotations, class_names: Sequence[str]
) -> tuple[str, dict[str, float]]:
    """KITTI's average precision; see ``evaluation.kitti.get_official_eval_result``."""
    # imported when first used: its kernels need numba, which the rest of the package can do without
    from pcdet_freeze.evaluation.kitti import get_official_eval_result

    return get_official_eval_result(gt_annos, dt_annos, class_names)


__all__ = [
    "EVALUATORS",
    "TASK_METRICS",
    "Annotation",
    "Evaluator",
    "MetricContext",
    "TaskMetric",
    "evaluate_kitti",
    "lanes",
    "segmentation",
    "table",
]
