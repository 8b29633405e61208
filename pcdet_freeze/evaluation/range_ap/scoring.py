"""Precision at 50 recall points, as ONCE's benchmark computes it; matching is that of KITTI.

Mao et al., "One Million Scenes for Autonomous Driving: ONCE Dataset", NeurIPS 2021 (arXiv:2106.11037),
section 4: AP = 1/50 sum over recalls r = 0.02 ... 1 of max of p(r') over r' >= r. The benchmark's code
(https://github.com/PointsCoder/ONCE_Benchmark) reaches recall r where the mean of the recalls before and
after the next match does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation.kitti.matching import count_at, true_positive_scores
from pcdet_freeze.evaluation.kitti.rules import COUNTED, IGNORED, OTHER, States
from pcdet_freeze.evaluation.precision_recall import PrecisionRecall
from pcdet_freeze.evaluation.range_ap.rules import DISTANCES, RangeClass, Rules
from pcdet_freeze.ops.iou import boxes_iou3d

RECALL_POINTS = 50
LEVEL_1_POINTS = 5
"""labels with more points are of level 1 where they are not marked with a level"""
_NEAR = 1e-6
"""sums of two recalls that differ by less are equal"""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RangeScores:
    """Average precision in percent, and the number of labels that count."""

    rules: Rules
    average: Floats
    """(classes, distances)"""
    labels: NDArray[np.int64]
    """(classes, distances)"""
    points: list[PrecisionRecall]
    """counts of each class and distance that has labels: ``AP_Vehicle/0-30m``"""


@dataclass(frozen=True)
class _Boxes:
    """Boxes of all frames."""

    first: NDArray[np.int64]
    """(frames + 1,) frame i has the boxes first[i]:first[i + 1]"""
    name: NDArray[np.str_]
    boxes: Floats
    """(K, 7)"""
    value: Floats
    """(K,) score of a detection, number of points of a label"""
    level: NDArray[np.int64]
    """(K,) level that a label is marked with, 0: none"""

    def states(self, kind: RangeClass, rules: Rules, distance: int, labels: bool) -> States:
        """(K,) COUNTED, IGNORED in another distance or of a harder level, else OTHER."""
        place = self.boxes[:, :2] if rules.ground_distance else self.boxes[:, :3]
        far = np.sqrt((place**2).sum(axis=1))
        _, low, high = DISTANCES[distance]
        counts = (far >= low) & (far < high)
        same = np.isin(self.name, kind.names)
        if labels and kind.level:
            counts &= self._levels() <= kind.level
            same &= self.value > 0
        return np.select([same & counts, same], [COUNTED, IGNORED], OTHER).astype(np.int8)

    def _levels(self) -> NDArray[np.int64]:
        by_points = np.where(self.value > LEVEL_1_POINTS, 1, 2)
        return np.where(np.isin(self.level, (1, 2)), self.level, by_points)


@dataclass(frozen=True)
class _Pairs:
    """Overlapping pairs of a label and a detection of one frame, ordered by label, then by detection."""

    label: NDArray[np.int64]
    detection: NDArray[np.int64]
    overlap: Floats


def score(
    gt_annos: Sequence[Mapping[str, Any]], dt_annos: Sequence[Mapping[str, Any]], rules: Rules
) -> RangeScores:
    """Score detections ``dt_annos`` (name, boxes_lidar, score) of the frames of ``gt_annos``.

    Labels: name, boxes_lidar (K, 7), num_points_in_gt (K,) and difficulty (K,), where they are known.
    Raises DataError for lists of different lengths, and for columns that are missing or not finite.
    """
    if len(gt_annos) != len(dt_annos):
        raise DataError(
            f"each labelled frame needs one dict of detections, in the same order; got {len(gt_annos)} in "
            f"gt_annos and {len(dt_annos)} in dt_annos"
        )
    labels = _joined(gt_annos, "num_points_in_gt", np.inf, "gt_annos")
    detections = _joined(dt_annos, "score", None, "dt_annos")
    pairs = _find_pairs(labels, detections, rules)
    average = np.zeros((len(rules.classes), len(DISTANCES)))
    counted = np.zeros(average.shape, np.int64)
    points = []
    for c, kind in enumerate(rules.classes):
        for d, (distance, _, _) in enumerate(DISTANCES):
            states = labels.states(kind, rules, d, True), detections.states(kind, rules, d, False)
            counted[c, d] = (states[0] == COUNTED).sum()
            if counted[c, d]:
                found = _points(pairs, detections.value, *states, kind.min_overlap)
                average[c, d] = _average(found)
                points.append(found.named(f"{rules.prefix}{kind.title}/{distance}"))
    return RangeScores(rules, average, counted, points)


def _joined(annos: Sequence[Mapping[str, Any]], key: str, default: float | None, source: str) -> _Boxes:
    names, boxes, values, levels = [], [], [], []
    for number, anno in enumerate(annos):
        where = f"{source}[{number}] (frame {anno.get('frame_id')})"
        try:
            name = np.asarray(anno["name"], str).reshape(-1)
            box = np.asarray(anno["boxes_lidar"], np.float64)
            if len(box) != len(name) or (len(box) and (box.ndim != 2 or box.shape[1] < 7)):
                raise ValueError(f"{len(name)} names, boxes of shape {box.shape}")
            box = box.reshape(len(name), -1)[:, :7] if len(name) else np.zeros((0, 7))
            value = np.full(len(name), default) if default is not None and key not in anno else anno[key]
            value = np.asarray(value, np.float64).reshape(len(name))
            level = np.asarray(anno.get("difficulty", np.zeros(len(name))), np.int64).reshape(len(name))
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{where}: an annotation must have name (K,), boxes_lidar (K, 7) and {key} (K,); {error!r}"
            ) from error
        if not np.isfinite(box).all() or np.isnan(value).any():
            raise DataError(f"{where}: boxes and {key} must be finite. Has the detector diverged?")
        names.append(name)
        boxes.append(box)
        # -1: the number of points is not known
        values.append(value if default is None else np.where(value < 0, default, value))
        levels.append(level)
    first = np.concatenate([[0], np.cumsum([len(name) for name in names])]).astype(np.int64)
    return _Boxes(
        first,
        np.concatenate([np.zeros(0, "U1"), *names]),
        np.concatenate([np.zeros((0, 7)), *boxes]),
        np.concatenate([np.zeros(0), *values]),
        np.concatenate([np.zeros(0, np.int64), *levels]),
    )


def _find_pairs(labels: _Boxes, detections: _Boxes, rules: Rules) -> _Pairs:
    least = min((kind.min_overlap for kind in rules.classes), default=0.0)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for frame in range(len(labels.first) - 1):
        a, b = (slice(*boxes.first[frame : frame + 2]) for boxes in (labels, detections))
        if a.start == a.stop or b.start == b.stop:
            continue
        overlap = boxes_iou3d(labels.boxes[a], detections.boxes[b])
        turn = labels.boxes[a, None, 6] - detections.boxes[None, b, 6]
        turned = np.abs(np.arctan2(np.sin(turn), np.cos(turn))) > rules.max_turn
        overlap = np.where(turned, 0.0, overlap)
        i, j = np.nonzero(overlap > least)
        found.append((i + a.start, j + b.start, overlap[i, j]))
    return _Pairs(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _points(
    pairs: _Pairs, scores: Floats, label_state: States, detection_state: States, least: float
) -> PrecisionRecall:
    """Counts at the thresholds of the recalls that are reached; at least one label counts."""
    total = int((label_state == COUNTED).sum())
    label, detection = np.flatnonzero(label_state != OTHER), np.flatnonzero(detection_state != OTHER)
    kept = (label_state[pairs.label] != OTHER) & (detection_state[pairs.detection] != OTHER)
    kept &= pairs.overlap > least
    first = np.searchsorted(pairs.label[kept], np.append(label, len(label_state)))
    candidate = np.searchsorted(detection, pairs.detection[kept])
    label_ignored, ignored = label_state[label] == IGNORED, detection_state[detection] == IGNORED
    hits = true_positive_scores(first, candidate, label_ignored, ignored, scores[detection])
    thresholds = recall_thresholds(np.sort(hits)[::-1], total)
    none, zeros = np.zeros(len(detection), bool), np.zeros(len(detection))
    true, false, _ = count_at(
        thresholds, first, candidate, pairs.overlap[kept], label_ignored, ignored, scores[detection], none,
        np.zeros(len(label)), zeros,
    )  # fmt: skip
    return PrecisionRecall("", total, thresholds, true, false)


def _average(points: PrecisionRecall) -> float:
    """Average precision in percent."""
    precision = np.zeros(RECALL_POINTS + 1)
    precision[: len(points.true)] = points.precision
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(100 * envelope[1:].mean())


def recall_thresholds(scores: Floats, labels: int) -> Floats:
    """(at most 51,) scores at which the recalls 0, 0.02, ..., 1 are reached.

    Args:
        scores: (T,) scores of true positives, descending.
        labels: number of labels that count.
    """
    reached = np.arange(1, len(scores) + 1) / labels
    both = reached + np.append(reached[1:], reached[-1:])
    found: list[float] = []
    at, last, wanted = -1, len(scores) - 1, 0.0
    while True:
        # a match stands for several recalls; the last one for the next recall too, which it may not reach
        if at < 0 or both[at] + _NEAR <= 2 * wanted:
            if at == last:
                return np.array(found)
            later = np.flatnonzero(both[at + 1 :] >= 2 * wanted)
            at = at + 1 + int(later[0]) if len(later) else last
        found.append(scores[at])
        wanted += 1 / RECALL_POINTS  # summed up as the benchmark does, whose rounding decides between equals
