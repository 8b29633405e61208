"""Precision over 41 recall points, and its mean: for every class, difficulty, metric and overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

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

OVERLAP_SETS = 2
"""Strict and loose."""


@dataclass(frozen=True)
class KittiScores:
    """What the benchmark says, in full."""

    classes: list[KittiClass]
    curves: dict[str, Floats]
    """metric (image, bev, 3d and, where angles are known, aos) ->
    (classes, difficulties, strict and loose overlap, 41): precision in [0, 1], by rising recall."""

    def average(self, metric: str, recall_points: int) -> Floats:
        """(classes, difficulties, overlaps) average precision in percent; ``recall_points`` is 11 or 40."""
        curve = self.curves[metric]
        sampled = curve[..., ::4] if recall_points == 11 else curve[..., 1:]
        return sampled.mean(axis=-1) * 100


@dataclass(frozen=True)
class Scene:
    """All frames, and which of their objects overlap."""

    labels: Labels
    detections: Detections
    pairs: Pairs
    cover: Floats
    """(detections,) part of the image box that a DontCare region covers."""

    def knows_angles(self) -> bool:
        """Whether orientation can be scored: detections have angles, and labels do where there are any."""
        return self.detections.has_alpha() and (self.labels.has_alpha() or bool(self.labels.dont_care.all()))


def score(
    gt_annos: Sequence[Mapping[str, Any]], dt_annos: Sequence[Mapping[str, Any]], classes: list[KittiClass]
) -> KittiScores:
    """Score ``dt_annos`` against ``gt_annos``, frame by frame; raises DataError for lists that do not fit."""
    if len(gt_annos) != len(dt_annos):
        raise DataError(
            f"every labelled frame needs one dict of detections, in the same order; got {len(gt_annos)} in "
            f"gt_annos and {len(dt_annos)} in dt_annos. Give a dict of empty arrays where nothing was found."
        )
    labels, detections = read_labels(gt_annos), read_detections(dt_annos)
    scene = Scene(labels, detections, find_pairs(labels, detections), dont_care_cover(labels, detections))
    metrics = ["image", "bev", "3d"] + (["aos"] if scene.knows_angles() else [])
    shape = (len(classes), len(DIFFICULTIES), OVERLAP_SETS, RECALL_POINTS)
    curves = {metric: np.zeros(shape) for metric in metrics}
    for c, wanted in enumerate(classes):
        for d, difficulty in enumerate(DIFFICULTIES):
            label_state = label_states(labels, wanted, difficulty)
            detection_state = detection_states(detections, wanted, difficulty)
            for metric, o, curve in _curves(scene, wanted, label_state, detection_state):
                if metric in curves:
                    curves[metric][c, d, o] = curve
    return KittiScores(classes, curves)


def _curves(
    scene: Scene, wanted: KittiClass, label_state: States, detection_state: States
) -> list[tuple[str, int, Floats]]:
    """(metric, overlap set, curve) for each metric and overlap set, of one class and difficulty."""
    found = []
    for metric in ("image", "bev", "3d"):
        known: dict[float, tuple[Floats, Floats]] = {}
        for o, least in enumerate(wanted.least_overlap(metric)):
            if least not in known:
                known[least] = precision_curves(scene, metric, least, label_state, detection_state)
            precision, orientation = known[least]
            found.append((metric, o, precision))
            if metric == "image":
                found.append(("aos", o, orientation))
    return found


def precision_curves(
    scene: Scene, metric: str, least_overlap: float, label_state: States, detection_state: States
) -> tuple[Floats, Floats]:
    """(41,) precision and (41,) orientation similarity by rising recall; zero where recall is not reached."""
    label, detection = np.flatnonzero(label_state != OTHER), np.flatnonzero(detection_state != OTHER)
    first, candidate, overlap = _candidates(scene.pairs, metric, least_overlap, label_state, detection_state)
    label_ignored = label_state[label] == IGNORED
    ignored = detection_state[detection] == IGNORED
    scores = scene.detections.score[detection]
    hits = true_positive_scores(first, candidate, label_ignored, ignored, scores)
    thresholds = recall_thresholds(np.sort(hits)[::-1].copy(), max(int((label_state == COUNTED).sum()), 1))
    # DontCare regions are drawn in the image only
    excused = (scene.cover[detection] > least_overlap) & (metric == "image")
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
    answers = np.maximum(true + false, 1)  # at a threshold without answers both numerators are 0
    return _envelope(true / answers), _envelope(similarity / answers)


def _candidates(
    pairs: Pairs, metric: str, least_overlap: float, label_state: States, detection_state: States
) -> tuple[np.ndarray, np.ndarray, Floats]:
    """``first, candidate, overlap`` for matching, numbered over the labels and detections that take part."""
    takes_part = (label_state[pairs.label] != OTHER) & (detection_state[pairs.detection] != OTHER)
    kept = takes_part & (pairs.overlap[metric] > least_overlap)
    label_number = np.cumsum(label_state != OTHER) - 1
    detection_number = np.cumsum(detection_state != OTHER) - 1
    labels = int((label_state != OTHER).sum())
    first = np.searchsorted(label_number[pairs.label[kept]], np.arange(labels + 1))
    return first, detection_number[pairs.detection[kept]], pairs.overlap[metric][kept]


def _envelope(precision: Floats) -> Floats:
    """(41,) at each recall the best precision at that recall or a higher one; zero beyond the last."""
    curve = np.zeros(RECALL_POINTS)
    curve[: len(precision)] = precision
    return np.maximum.accumulate(curve[::-1])[::-1]
