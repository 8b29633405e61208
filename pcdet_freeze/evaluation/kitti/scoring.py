"""Precision at 41 recall points and its mean, for each class, difficulty, metric and overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation.kitti.matching import (
    RECALL_POINTS,
    count_at,
    recall_thresholds,
    true_positive_scores,
)
from pcdet_freeze.evaluation.kitti.overlaps import Pairs, dont_care_cover, find_pairs
from pcdet_freeze.evaluation.kitti.rules import (
    COUNTED,
    DIFFICULTIES,
    IGNORED,
    OTHER,
    KittiClass,
    States,
    detection_states,
    label_states,
)
from pcdet_freeze.evaluation.kitti.tables import Detections, Floats, Labels, read_detections, read_labels
from pcdet_freeze.evaluation.precision_recall import PrecisionRecall

OVERLAP_SETS = 2
"""Strict and loose minimum overlap."""
POINTS_OF = ("bev", "3d")
"""metrics whose counts are kept"""


@dataclass(frozen=True)
class KittiScores:
    """All results of the benchmark."""

    classes: list[KittiClass]
    curves: dict[str, Floats]
    """metric (image, bev, 3d and, if angles are available, aos) -> precision in [0, 1] with shape (classes,
    difficulties, strict and loose overlap, 41), by increasing recall."""
    counted: NDArray[np.int64]
    """(classes, difficulties) labels that count"""
    points: list[PrecisionRecall]
    """counts of each curve of BEV and 3D at the strict overlap: ``Car_3d/moderate``"""

    def average(self, metric: str, recall_points: int) -> Floats:
        """Average precision (classes, difficulties, overlaps) in percent; ``recall_points`` is 11 or 40."""
        curve = self.curves[metric]
        sampled = curve[..., ::4] if recall_points == 11 else curve[..., 1:]
        return sampled.mean(axis=-1) * 100


def best_average(labels: int) -> float:
    """AP R40 in percent of perfect detections of ``labels`` labels: below 100 for fewer than 41."""
    points = len(recall_thresholds(np.linspace(1, 0.5, labels), max(labels, 1)))
    return 100 * max(points - 1, 0) / (RECALL_POINTS - 1)


@dataclass(frozen=True)
class Scene:
    """The objects of all frames and their overlaps."""

    labels: Labels
    detections: Detections
    pairs: Pairs
    cover: Floats
    """(detections,) fraction of the image box covered by a DontCare region."""

    def knows_angles(self) -> bool:
        """True if detections have angles, and labels have angles if there are any labels."""
        return self.detections.has_alpha() and (self.labels.has_alpha() or bool(self.labels.dont_care.all()))


def score(
    gt_annos: Sequence[Mapping[str, Any]], dt_annos: Sequence[Mapping[str, Any]], classes: list[KittiClass]
) -> KittiScores:
    """Evaluate ``dt_annos`` against ``gt_annos``; raises DataError for lists of different lengths."""
    if len(gt_annos) != len(dt_annos):
        raise DataError(
            f"each labelled frame needs one dict of detections, in the same order; got {len(gt_annos)} in "
            f"gt_annos and {len(dt_annos)} in dt_annos. Use a dict of empty arrays for frames without "
            "detections."
        )
    labels, detections = read_labels(gt_annos), read_detections(dt_annos)
    scene = Scene(labels, detections, find_pairs(labels, detections), dont_care_cover(labels, detections))
    metrics = ["image", "bev", "3d"] + (["aos"] if scene.knows_angles() else [])
    shape = (len(classes), len(DIFFICULTIES), OVERLAP_SETS, RECALL_POINTS)
    curves = {metric: np.zeros(shape) for metric in metrics}
    counted = np.zeros(shape[:2], np.int64)
    points = []
    for c, kitti_class in enumerate(classes):
        for d, difficulty in enumerate(DIFFICULTIES):
            label_state = label_states(labels, kitti_class, difficulty)
            counted[c, d] = (label_state == COUNTED).sum()
            detection_state = detection_states(detections, kitti_class, difficulty)
            for metric, o, curve in _curves(scene, kitti_class, label_state, detection_state):
                if metric in curves:
                    curves[metric][c, d, o] = curve.orientation if metric == "aos" else curve.precision
                if metric in POINTS_OF and o == 0 and counted[c, d]:
                    points.append(curve.points.named(f"{kitti_class.name}_{metric}/{difficulty.name}"))
    return KittiScores(classes, curves, counted, points)


@dataclass(frozen=True)
class Curve:
    """Curves of one class, difficulty, metric and overlap."""

    precision: Floats
    """(41,) by increasing recall, zero above the highest"""
    orientation: Floats
    """(41,) similarity of the orientation"""
    points: PrecisionRecall


def _curves(
    scene: Scene, kitti_class: KittiClass, label_state: States, detection_state: States
) -> list[tuple[str, int, Curve]]:
    """(metric, overlap set, curve) for each metric and overlap set, of one class and difficulty."""
    found = []
    for metric in ("image", "bev", "3d"):
        known: dict[float, Curve] = {}
        for o, min_overlap in enumerate(kitti_class.min_overlap(metric)):
            if min_overlap not in known:
                known[min_overlap] = precision_curves(
                    scene, metric, min_overlap, label_state, detection_state
                )
            found.append((metric, o, known[min_overlap]))
            if metric == "image":
                found.append(("aos", o, known[min_overlap]))
    return found


def precision_curves(
    scene: Scene, metric: str, min_overlap: float, label_state: States, detection_state: States
) -> Curve:
    """The curves, and the counts that they are computed from."""
    label, detection = np.flatnonzero(label_state != OTHER), np.flatnonzero(detection_state != OTHER)
    first, candidate, overlap = _candidates(scene.pairs, metric, min_overlap, label_state, detection_state)
    label_ignored = label_state[label] == IGNORED
    ignored = detection_state[detection] == IGNORED
    scores = scene.detections.score[detection]
    hits = true_positive_scores(first, candidate, label_ignored, ignored, scores)
    counted = int((label_state == COUNTED).sum())
    thresholds = recall_thresholds(np.sort(hits)[::-1].copy(), max(counted, 1))
    # DontCare regions exist in the image only
    excused = (scene.cover[detection] > min_overlap) & (metric == "image")
    true, false, similarity = count_at(
        thresholds,
        first,
        candidate,
        overlap,
        label_ignored,
        ignored,
        scores,
        excused,
        scene.labels.alpha[label],
        scene.detections.alpha[detection],
    )
    total = np.maximum(true + false, 1)  # without detections above a threshold both numerators are 0
    points = PrecisionRecall("", counted, thresholds, true, false)
    return Curve(_envelope(true / total), _envelope(similarity / total), points)


def _candidates(
    pairs: Pairs, metric: str, min_overlap: float, label_state: States, detection_state: States
) -> tuple[np.ndarray, np.ndarray, Floats]:
    """``first, candidate, overlap`` for matching, numbered over the labels and detections considered."""
    takes_part = (label_state[pairs.label] != OTHER) & (detection_state[pairs.detection] != OTHER)
    kept = takes_part & (pairs.overlap[metric] > min_overlap)
    label_number = np.cumsum(label_state != OTHER) - 1
    detection_number = np.cumsum(detection_state != OTHER) - 1
    labels = int((label_state != OTHER).sum())
    first = np.searchsorted(label_number[pairs.label[kept]], np.arange(labels + 1))
    return first, detection_number[pairs.detection[kept]], pairs.overlap[metric][kept]


def _envelope(precision: Floats) -> Floats:
    """(41,) maximum precision at each recall or a higher one; zero after the last."""
    curve = np.zeros(RECALL_POINTS)
    curve[: len(precision)] = precision
    return np.maximum.accumulate(curve[::-1])[::-1]
