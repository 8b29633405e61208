"""Metrics: annotations in, one text and one flat dict out. Imports neither datasets nor models.

``EVALUATORS.get(name)(gt_annos, dt_annos, class_names) -> (text, dict)``: another metric is one more
function registered under one more name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcdet_freeze.registry import Registry

Annotation = Mapping[str, Any]
Annotations = Sequence[Annotation]
Evaluator = Callable[[Annotations, Annotations, Sequence[str]], tuple[str, dict[str, float]]]

EVALUATORS: Registry[Evaluator] = Registry("EVALUATOR")


@EVALUATORS.register_as("kitti")
def evaluate_kitti(
    gt_annos: Annotations, dt_annos: Annotations, class_names: Sequence[str]
) -> tuple[str, dict[str, float]]:
    """KITTI's average precision; see ``evaluation.kitti.get_official_eval_result``."""
    # imported when first used: its kernels need numba, which the rest of the package can do without
    from pcdet_freeze.evaluation.kitti import get_official_eval_result

    return get_official_eval_result(gt_annos, dt_annos, class_names)


__all__ = ["EVALUATORS", "Annotation", "Evaluator", "evaluate_kitti"]
