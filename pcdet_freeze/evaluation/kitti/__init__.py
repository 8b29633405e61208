"""KITTI object benchmark: average precision in the image (2D), in BEV, in 3D, and of orientation (AOS).

The rules are those of the devkit (Geiger et al., "Are we ready for autonomous driving?", CVPR 2012, and
``evaluate_object_3d_offline.cpp`` at https://www.cvlibs.net/datasets/kitti/eval_object.php), with R40 after
Simonelli et al., "Disentangling monocular 3D object detection", ICCV 2019. Each step is one file:

    tables    annotation dicts -> validated columns over all frames
    rules     labels and detections that count, for a class and a difficulty
    overlaps  IoU of overlapping label-detection pairs
    matching  matching of labels and detections at a score threshold
    scoring   thresholds -> precision curve -> average precision, per class, difficulty and overlap
    report    the text and the dict

Note that a curve is sampled at 41 recall points but has at most as many points as there are matched labels.
With fewer than 41 labels, even perfect detections score below 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pcdet_freeze.evaluation.kitti.report import as_dict, as_text, notes
from pcdet_freeze.evaluation.kitti.rules import find_classes
from pcdet_freeze.evaluation.kitti.scoring import KittiScores, score

Classes = str | int | Sequence[str | int]


def evaluate(
    gt_annos: Sequence[Mapping[str, Any]],
    dt_annos: Sequence[Mapping[str, Any]],
    current_classes: Classes,
    overlaps: Mapping[str, float] | None = None,
) -> KittiScores:
    """All precision curves and average precisions as arrays; arguments of ``get_official_eval_result``.

    ``overlaps``: class -> strict minimum overlap (IoU), of which the loose one is half. With it, classes that
    the benchmark does not have are evaluated too, at OWN_OVERLAP unless they are listed.
    """
    return score(gt_annos, dt_annos, find_classes(current_classes, overlaps))


def get_official_eval_result(
    gt_annos: Sequence[Mapping[str, Any]], dt_annos: Sequence[Mapping[str, Any]], current_classes: Classes
) -> tuple[str, dict[str, float]]:
    """Evaluate detections with the KITTI benchmark.

    Args:
        gt_annos: one dict per frame with K labels: name (K,), truncated (K,), occluded (K,), alpha (K,) rad,
            bbox (K, 4) pixels [left, top, right, bottom], dimensions (K, 3) m [l, h, w], location (K, 3) m,
            bottom centre in the camera frame (x right, y down, z forward), rotation_y (K,) rad.
        dt_annos: the same frames in the same order; score (K,) instead of truncated and occluded.
            Orientation (aos) is evaluated only if both have an ``alpha`` other than -10.
        current_classes: names or numbers of KITTI classes, one or several.

    Returns:
        text: the table of OpenPCDet: AP at 11 and at 40 recall points, easy, moderate, hard.
        values: percent. The keys of OpenPCDet ``Car_3d/moderate_R40`` (metrics image, bev, 3d, aos; the
        strict
            overlaps: 0.7 for cars, 0.5 for people), and for every overlap ``Car_3d_0.50/moderate_R40`` and
            ``Car_3d_0.50/moderate_R11``.

    Raises:
        ConfigError: a class that is not in the benchmark.
        DataError: lists of different lengths, missing columns or wrong shapes, non-finite values.
    """
    scores = evaluate(gt_annos, dt_annos, current_classes)
    return as_text(scores), as_dict(scores)


__all__ = ["KittiScores", "as_dict", "as_text", "evaluate", "get_official_eval_result", "notes"]
