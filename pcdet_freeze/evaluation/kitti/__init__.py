"""KITTI's object benchmark: average precision in the image, from above, in 3D, and of orientation.

The rules are those of the devkit (Geiger et al., "Are we ready for autonomous driving?", CVPR 2012, and
``evaluate_object_3d_offline.cpp`` at https://www.cvlibs.net/datasets/kitti/eval_object.php), with R40 after
Simonelli et al., "Disentangling monocular 3D object detection", ICCV 2019. One step a file:

    tables    annotation dicts -> checked columns over all frames
    rules     which labels and detections count, for a class and a difficulty
    overlaps  label-detection pairs that overlap at all
    matching  who is matched with whom, at a score threshold
    scoring   thresholds -> precision curve -> average precision, per class, difficulty and overlap
    report    the text and the dict

One property of the benchmark surprises: a curve is sampled at 41 recall points but has no more points than
there are matched labels, so with fewer than 41 labels even perfect detections stay below 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pcdet_freeze.evaluation.kitti.report import as_dict, as_text
from pcdet_freeze.evaluation.kitti.rules import find_classes
from pcdet_freeze.evaluation.kitti.scoring import KittiScores, score

Classes = str | int | Sequence[str | int]


def evaluate(
    gt_annos: Sequence[Mapping[str, Any]], dt_annos: Sequence[Mapping[str, Any]], current_classes: Classes
) -> KittiScores:
    """Every curve and average precision as arrays; arguments as ``get_official_eval_result`` takes them."""
    return score(gt_annos, dt_annos, find_classes(current_classes))


def get_official_eval_result(
    gt_annos: Sequence[Mapping[str, Any]], dt_annos: Sequence[Mapping[str, Any]], current_classes: Classes
) -> tuple[str, dict[str, float]]:
    """Score detections as the KITTI benchmark does.

    Args:
        gt_annos: one dict a frame, K labels: name (K,), truncated (K,), occluded (K,), alpha (K,) rad,
            bbox (K, 4) pixels [left, top, right, bottom], dimensions (K, 3) m [l, h, w], location (K, 3) m,
            bottom centre in the camera's frame (x right, y down, z forward), rotation_y (K,) rad.
        dt_annos: the same frames in the same order; score (K,) instead of truncated and occluded.
            Orientation (aos) is scored only where both sides have an ``alpha`` other than -10.
        current_classes: KITTI class names, or their numbers, or one of either.

    Returns:
        text: upstream's table: AP at 11 and at 40 recall points, easy, moderate, hard.
        values: percent. Upstream's keys ``Car_3d/moderate_R40`` (metrics image, bev, 3d, aos; the strict
            overlaps: 0.7 for cars, 0.5 for people), and for every overlap ``Car_3d_0.50/moderate_R40`` and
            ``Car_3d_0.50/moderate_R11``.

    Raises:
        ConfigError: a class that the benchmark does not know.
        DataError: lists of different length, missing or ill-shaped columns, values that are not finite.
    """
    scores = evaluate(gt_annos, dt_annos, current_classes)
    return as_text(scores), as_dict(scores)


__all__ = ["KittiScores", "evaluate", "get_official_eval_result"]
