"""Metrics: ground truth and predictions -> a flat dict of values. Imports neither datasets nor models.

* detection: ``EVALUATORS.get(name)(gt_annos, dt_annos, class_names) -> (text, dict)``, set in the config;
* other tasks: a class in ``TASK_METRICS`` (see ``tasks``), used for every model that predicts the task.

To add a metric, register a function or a class under a new name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# importing these modules registers their metrics
from pcdet_freeze.evaluation import argoverse2, lanes, segmentation
from pcdet_freeze.evaluation.precision_recall import PrecisionRecall
from pcdet_freeze.evaluation.summary import table
from pcdet_freeze.evaluation.tasks import TASK_METRICS, MetricContext, TaskMetric
from pcdet_freeze.registry import Registry

Annotation = Mapping[str, Any]
Annotations = Sequence[Annotation]
Evaluator = Callable[[Annotations, Annotations, Sequence[str]], tuple[str, dict[str, float]]]

EVALUATORS: Registry[Evaluator] = Registry("MODEL.POST_PROCESSING.EVAL_METRIC")


@EVALUATORS.register_as("kitti")
def evaluate_kitti(
    gt_annos: Annotations,
    dt_annos: Annotations,
    class_names: Sequence[str],
    overlaps: Mapping[str, float] | None = None,
    points: list[PrecisionRecall] | None = None,
) -> tuple[str, dict[str, float]]:
    """KITTI's average precision, for classes of your own too.

    ``overlaps``: EVALUATION.IOU, class -> least IoU. The text ends with a line about each class that has too
    few labels to reach 100. ``points`` gets the counts of each precision curve. See
    ``evaluation.kitti.evaluate``.
    """
    # imported on first use, because only its kernels require numba
    from pcdet_freeze.evaluation.kitti import as_dict, as_text, evaluate, notes

    scores = evaluate(gt_annos, dt_annos, class_names, overlaps or {})
    if points is not None:
        points += scores.points
    return as_text(scores) + notes(scores), as_dict(scores)


@EVALUATORS.register_as("once")
def evaluate_once(
    gt_annos: Annotations,
    dt_annos: Annotations,
    class_names: Sequence[str],
    overlaps: Mapping[str, float] | None = None,
    points: list[PrecisionRecall] | None = None,
) -> tuple[str, dict[str, float]]:
    """ONCE's orientation-aware AP by distance; see ``evaluation.range_ap.evaluate_once``."""
    from pcdet_freeze.evaluation import range_ap

    return range_ap.evaluate_once(gt_annos, dt_annos, class_names, overlaps, points)


@EVALUATORS.register_as("waymo")
def evaluate_waymo(
    gt_annos: Annotations,
    dt_annos: Annotations,
    class_names: Sequence[str],
    overlaps: Mapping[str, float] | None = None,
    points: list[PrecisionRecall] | None = None,
) -> tuple[str, dict[str, float]]:
    """An approximation of Waymo's AP by distance; see ``evaluation.range_ap.evaluate_waymo``."""
    from pcdet_freeze.evaluation import range_ap

    return range_ap.evaluate_waymo(gt_annos, dt_annos, class_names, overlaps, points)


@EVALUATORS.register_as("av2")
def evaluate_argoverse2(
    gt_annos: Annotations, dt_annos: Annotations, class_names: Sequence[str]
) -> tuple[str, dict[str, float]]:
    """Argoverse 2's average precision by the distance of centres (see ``evaluation.argoverse2``)."""
    scores = argoverse2.evaluate(gt_annos, dt_annos, class_names)
    return argoverse2.as_text(scores), argoverse2.as_dict(scores)


__all__ = [
    "EVALUATORS",
    "TASK_METRICS",
    "Annotation",
    "Evaluator",
    "MetricContext",
    "PrecisionRecall",
    "TaskMetric",
    "argoverse2",
    "evaluate_argoverse2",
    "evaluate_kitti",
    "lanes",
    "segmentation",
    "table",
]
