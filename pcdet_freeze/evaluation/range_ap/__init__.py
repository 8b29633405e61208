"""AP of LiDAR boxes by distance: ONCE's metric, and an approximation of Waymo's.

rules     which classes are one, minimum overlaps, distances, labels that count
scoring   annotation dicts -> precision at 50 recall points -> average precision
report    the table and the dict
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pcdet_freeze.evaluation.precision_recall import PrecisionRecall
from pcdet_freeze.evaluation.range_ap.report import as_dict, as_text
from pcdet_freeze.evaluation.range_ap.rules import once_rules, waymo_rules
from pcdet_freeze.evaluation.range_ap.scoring import score

Annos = Sequence[Mapping[str, Any]]


def evaluate_once(
    gt_annos: Annos,
    dt_annos: Annos,
    class_names: Sequence[str],
    overlaps: Mapping[str, float] | None = None,
    points: list[PrecisionRecall] | None = None,
) -> tuple[str, dict[str, float]]:
    """ONCE's orientation-aware AP, overall and by distance (Mao et al., NeurIPS 2021, arXiv:2106.11037).

    Car, Bus and Truck are one class, Vehicle. A match has an overlap above the minimum and a heading within
    90 degrees. ``overlaps``: EVALUATION.IOU, minimum overlap of a class. ``points`` gets the counts of each
    precision curve.
    """
    scores = score(gt_annos, dt_annos, once_rules(class_names, overlaps or {}))
    if points is not None:
        points += scores.points
    return as_text(scores), as_dict(scores)


def evaluate_waymo(
    gt_annos: Annos,
    dt_annos: Annos,
    class_names: Sequence[str],
    overlaps: Mapping[str, float] | None = None,
    points: list[PrecisionRecall] | None = None,
) -> tuple[str, dict[str, float]]:
    """AP of each class, overall and by distance, with Waymo's overlaps and levels: an approximation.

    The official metric of waymo-open-dataset matches detections otherwise and weighs headings (APH).
    ``result.pkl`` of an evaluation has the keys that OpenPCDet's ``waymo_eval.py`` reads, which runs it.
    """
    scores = score(gt_annos, dt_annos, waymo_rules(class_names, overlaps or {}))
    if points is not None:
        points += scores.points
    return as_text(scores), as_dict(scores)


__all__ = ["evaluate_once", "evaluate_waymo"]
