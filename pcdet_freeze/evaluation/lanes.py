"""Lane metrics per cell, as in K-Lane (Paek et al., CVPR workshops 2022), and the Chamfer distance in metres.

Confidence: a predicted lane cell is correct if a ground-truth lane cell is at most one cell away (in x, y or
both), and a ground-truth lane cell is found if a predicted one is. Class: the line numbers must match too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation.tasks import TASK_METRICS, Counts, TaskMetric, ratio
from pcdet_freeze.ops.lanes import NO_LANE, along, line_points

MAX_DISTANCE = 5.0
"""Upper bound of each distance in metres, also used for a line without a counterpart."""


@TASK_METRICS.register_as("lane")
class LaneMetric(TaskMetric):
    """``lane/F1``, ``precision``, ``recall``, ``accuracy``, ``class_F1`` in 0..1; ``lane/chamfer_m``.

    All values are over the cells (or points) of all frames. ``accuracy``: fraction of the cells of the map
    that are neither false positives nor false negatives. ``chamfer_m``: mean of the two mean distances, from
    predicted polylines to the nearest ground-truth line and vice versa, each distance at most MAX_DISTANCE;
    only if polylines are predicted.
    """

    prediction, label, per_point = "pred_lane_map", "lane_map", False

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """truth (H, W); prediction: pred_lane_map (H, W), optional pred_lanes, a list of (n, 2) in metres."""
        predicted = np.asarray(prediction[self.prediction])
        if predicted.shape != truth.shape:
            raise DataError(
                f"pred_lane_map must have the size of lane_map, {truth.shape}; got {predicted.shape}. "
                "The lane head and the labels must have the same grid."
            )
        counts = compare_cells(truth, predicted)
        if "pred_lanes" in prediction:
            counts |= self._distances(truth, prediction["pred_lanes"])
        return counts

    def _distances(self, truth: np.ndarray, polylines: Any) -> Counts:
        limits = self.context.point_cloud_range
        cell = (limits[3] - limits[0]) / truth.shape[1]
        true = _concatenate(line_points(truth, limits))
        predicted = _concatenate([along(line, cell) for line in polylines])
        return {
            "predicted_points": len(predicted),
            "true_points": len(true),
            "predicted_metres": nearest(predicted, true).sum(),
            "true_metres": nearest(true, predicted).sum(),
        }

    def summarise(self, total: Counts) -> dict[str, float]:
        precision, recall = ratio(total["correct"], total["predicted"]), ratio(total["found"], total["true"])
        errors = total["predicted"] - total["correct"] + total["true"] - total["found"]
        values = {
            "F1": f1(precision, recall),
            "precision": precision,
            "recall": recall,
            "accuracy": 1.0 - ratio(errors, total["cells"]),
            "class_F1": f1(
                ratio(total["class_correct"], total["predicted"]), ratio(total["class_found"], total["true"])
            ),
        }
        if total.get("predicted_points", 0) + total.get("true_points", 0):
            directions = [
                total[f"{side}_metres"] / total[f"{side}_points"] if total[f"{side}_points"] else MAX_DISTANCE
                for side in ("predicted", "true")
            ]
            values["chamfer_m"] = float(sum(directions) / 2)
        return {f"lane/{key}": value for key, value in values.items()}


def compare_cells(truth: np.ndarray, predicted: np.ndarray) -> Counts:
    """Counts of lane cells of two maps (H, W), 255 = none, and of those that match within one cell."""
    true_cells, predicted_cells = truth != NO_LANE, predicted != NO_LANE
    counts = {"cells": truth.size, "true": int(true_cells.sum()), "predicted": int(predicted_cells.sum())}
    counts["correct"] = int((predicted_cells & dilate(true_cells)).sum())
    counts["found"] = int((true_cells & dilate(predicted_cells)).sum())
    numbers = np.intersect1d(truth[true_cells], predicted[predicted_cells])
    maps = [(truth == number, predicted == number) for number in numbers]
    counts["class_correct"] = sum(int((b & dilate(a)).sum()) for a, b in maps)
    counts["class_found"] = sum(int((a & dilate(b)).sum()) for a, b in maps)
    return counts


def dilate(cells: np.ndarray) -> np.ndarray:
    """``cells`` (H, W) bool, dilated to their eight neighbours."""
    padded = np.pad(cells, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def nearest(points: np.ndarray, others: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """(M,) metres from each point (M, 2) to the nearest of ``others`` (K, 2), at most MAX_DISTANCE."""
    if not len(others):
        return np.full(len(points), MAX_DISTANCE)
    parts = [_nearest(points[start : start + chunk], others) for start in range(0, len(points), chunk)]
    return np.minimum(np.concatenate([*parts, np.zeros(0)]), MAX_DISTANCE)


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Metres from each point (M, 2), one or more, to the nearest of ``others`` (K, 2), one or more."""
    x, y = (points[:, None, axis] - others[None, :, axis] for axis in (0, 1))
    squares = x * x + y * y
    # hypot() takes most of the time: only of those that rounding may have put behind another
    row, column = (squares <= squares.min(axis=1, keepdims=True) * (1 + 1e-9)).nonzero()
    found = np.full(len(points), np.inf)
    np.minimum.at(found, row, np.hypot(x[row, column], y[row, column]))
    return found


def f1(precision: float, recall: float) -> float:
    """Harmonic mean of precision and recall; 0 if both are 0."""
    return ratio(2 * precision * recall, precision + recall)


def _concatenate(lines: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*lines, np.zeros((0, 2))])
