"""Argoverse 2's detection metrics: AP by the distance of centres, errors of true positives, and their score.

After the definition of the Argoverse 2 3D object detection challenge (Wilson et al., NeurIPS 2021 datasets
track, arXiv:2301.00493, and the notes of the package ``av2`` 0.3.6, whose figures they are). Not included:
the restriction to the map's region of interest, which the challenge's server makes.

* Counted are detections within 150 m, the 100 with the highest scores of each class and frame, and labels
  within 150 m with one point or more; distances are from the vehicle's origin, in 3D.
* A detection belongs to the nearest label of its class and frame. Of those of a label, the one with the
  highest score is a true positive at a threshold (0.5, 1, 2, 4 m) if its centre is nearer than that; the
  others are false.
* AP: mean of the precision, made monotonic, at 101 recalls; the AP of a class is the mean of the thresholds.
* ATE (m), ASE, AOE (radians): means over the true positives at 2 m; without any 2, 1 and pi. The error in
  size is 1 - the volume that the aligned boxes share / that of the box with the larger of their edges.
* CDS: AP times the mean of 1 - ATE / 2, 1 - ASE and 1 - AOE / pi.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""metres"""
ERROR_THRESHOLD = 2
"""place in THRESHOLDS of that of the errors"""
RANGE, MOST = 150.0, 100
RECALLS = np.linspace(0.0, 1.0, 101)
WORST = np.array([THRESHOLDS[ERROR_THRESHOLD], 1.0, np.pi])
"""ATE, ASE and AOE without a true positive"""
ERRORS = ("ATE", "ASE", "AOE")


@dataclass(frozen=True)
class Matches:
    """Counted detections of one class, of one frame or of all."""

    scores: np.ndarray
    """(N,)"""
    correct: np.ndarray
    """(N, 4) bool: true positive at each of THRESHOLDS"""
    errors: np.ndarray
    """(N, 3) ATE, ASE, AOE; of the true positives at 2 m"""
    labels: int
    """labels that count"""


def evaluate(
    gt_annos: Sequence[Mapping[str, Any]], dt_annos: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """``{class: {"AP@0.5": ..., "AP": ..., "ATE": ..., "ASE": ..., "AOE": ..., "CDS": ...}}``.

    A class that no label has is left out. Values are those of the definition: AP and CDS from 0 to 1.

    Args:
        gt_annos: dicts with name (K,), boxes_lidar (K, 7+) and num_points_in_gt (K,), one a frame.
        dt_annos: the same frames, dicts with name, boxes_lidar and score.
    """
    found = {}
    for name in class_names:
        pairs = zip(gt_annos, dt_annos, strict=True)
        matches = _joined([_frame(_rows(gt, name), _rows(dt, name)) for gt, dt in pairs])
        if matches.labels:
            found[name] = _summary(matches)
    return found


def _rows(anno: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (K, 7) of a class, and their score or number of points (K,)."""
    mine = np.asarray(anno["name"], str) == name
    column = anno["score"] if "score" in anno else anno["num_points_in_gt"]
    boxes = np.asarray(anno["boxes_lidar"], np.float64) if len(mine) else np.zeros((0, 7))
    return boxes[mine, :7], np.asarray(column, np.float64)[mine]


def _frame(labels: tuple[np.ndarray, np.ndarray], said: tuple[np.ndarray, np.ndarray]) -> Matches:
    """Match the detections of a frame."""
    true = labels[0][_in_range(labels[0]) & (labels[1] > 0)]
    order = np.argsort(-said[1], kind="stable")
    boxes, scores = said[0][order], said[1][order]
    counted = np.flatnonzero(_in_range(boxes))[:MOST]
    boxes, scores = boxes[counted], scores[counted]
    correct = np.zeros((len(boxes), len(THRESHOLDS)), bool)
    errors = np.tile(WORST, (len(boxes), 1))
    if len(boxes) and len(true):
        distance = np.linalg.norm(boxes[:, None, :3] - true[None, :, :3], axis=2)
        nearest = distance.argmin(axis=1)
        _, first = np.unique(nearest, return_index=True)  # detections come by falling score
        correct[first] = distance[first, nearest[first], None] < np.array(THRESHOLDS)
        hits = first[correct[first, ERROR_THRESHOLD]]
        errors[hits] = _errors(boxes[hits], true[nearest[hits]])
    return Matches(scores, correct, errors, len(true))


def _in_range(boxes: np.ndarray) -> np.ndarray:
    return np.linalg.norm(boxes[:, :3], axis=1) < RANGE


def _errors(boxes: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(N, 3) distance, difference in size, difference of the headings in 0..pi."""
    smaller = np.minimum(boxes[:, 3:6], true[:, 3:6]).prod(axis=1)
    larger = np.maximum(boxes[:, 3:6], true[:, 3:6]).prod(axis=1)
    turn = np.abs(np.mod(boxes[:, 6] - true[:, 6] + np.pi, 2 * np.pi) - np.pi)
    return np.column_stack([np.linalg.norm(boxes[:, :3] - true[:, :3], axis=1), 1 - smaller / larger, turn])


def _joined(frames: Sequence[Matches]) -> Matches:
    """The detections of all frames, by falling score."""
    scores = np.concatenate([frame.scores for frame in frames])
    order = np.argsort(-scores, kind="stable")
    correct = np.concatenate([frame.correct for frame in frames])[order]
    errors = np.concatenate([frame.errors for frame in frames])[order]
    return Matches(scores[order], correct, errors, sum(frame.labels for frame in frames))


def _summary(matches: Matches) -> dict[str, float]:
    aps = [average_precision(column, matches.labels) for column in matches.correct.T]
    hits = matches.correct[:, ERROR_THRESHOLD]
    errors = matches.errors[hits].mean(axis=0) if hits.any() else WORST
    ap = float(np.mean(aps))
    return {
        **{f"AP@{threshold:g}": value for threshold, value in zip(THRESHOLDS, aps, strict=True)},
        "AP": ap,
        **{name: float(error) for name, error in zip(ERRORS, errors, strict=True)},
        "CDS": ap * float(np.mean(1 - errors / WORST)),
    }


def average_precision(correct: np.ndarray, labels: int) -> float:
    """AP of detections by falling score, ``correct`` (N,) bool, for ``labels`` > 0 labels."""
    if not len(correct):
        return 0.0
    true = np.cumsum(correct)
    precision = true / np.arange(1, len(correct) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.interp(RECALLS, true / labels, precision, right=0.0).mean())


def as_dict(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """``{"av2/mAP": ..., "av2/CDS": ..., "av2/AP/Car": ...}``: means over classes, then the AP of each."""
    if not scores:
        return {}
    keys = next(iter(scores.values()))
    means = {key: float(np.mean([found[key] for found in scores.values()])) for key in keys}
    named = {f"av2/{key if key == 'CDS' else f'm{key}'}": value for key, value in means.items()}
    return named | {f"av2/AP/{name}": values["AP"] for name, values in scores.items()}


def as_text(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A table, one row a class."""
    if not scores:
        return "no label of these classes lies within 150 m and has a point"
    keys = list(next(iter(scores.values())))
    wide = max(map(len, ("class", *scores)))
    lines = [f"{'class':<{wide}}" + "".join(f"{key:>9}" for key in keys)]
    lines += [f"{name:<{wide}}" + "".join(f"{row[key]:9.4f}" for key in keys) for name, row in scores.items()]
    return "\n".join(lines)
