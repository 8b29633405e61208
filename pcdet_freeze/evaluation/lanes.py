"""Lane lines by cell, as K-Lane scores them (Paek et al., CVPR workshops 2022), and by distance in metres.

Confidence: a cell said to hold a line is right if a true lane cell is at most one cell away (in x, y or
both), and a true lane cell is found if a said one is. Class: the same, and the numbers must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation.tasks import TASK_METRICS, Counts, TaskMetric, ratio
from pcdet_freeze.ops.lanes import NO_LANE, along, line_points

FAR = 5.0
"""Distance in metres at which the Chamfer distance stops to grow: a line without any counterpart."""


@TASK_METRICS.register_as("lane")
class LaneMetric(TaskMetric):
    """``lane/F1``, ``precision``, ``recall``, ``accuracy``, ``class_F1`` in 0..1; ``lane/chamfer_m``.

    All are over the cells (or points) of all frames together. ``accuracy``: cells of the whole map that are
    neither wrongly said nor missed. ``chamfer_m``: mean of the two mean distances, from the said polylines
    to the nearest true line and back, each distance at most FAR; only where polylines are predicted.
    """

    prediction, label, per_point = "pred_lane_map", "lane_map", False

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """truth (H, W), prediction: pred_lane_map (H, W), optional pred_lanes, a list of (n, 2) metres."""
        said = np.asarray(prediction[self.prediction])
        if said.shape != truth.shape:
            raise DataError(
                f"pred_lane_map must have the size of lane_map, {truth.shape}; got {said.shape}: the lane "
                "head's grid and the labels' must agree"
            )
        counts = compare_cells(truth, said)
        if "pred_lanes" in prediction:
            counts |= self._distances(truth, prediction["pred_lanes"])
        return counts

    def _distances(self, truth: np.ndarray, polylines: Any) -> Counts:
        limits = self.context.point_cloud_range
        cell = (limits[3] - limits[0]) / truth.shape[1]
        true = _joined(line_points(truth, limits))
        said = _joined([along(line, cell) for line in polylines])
        return {
            "said_points": len(said),
            "true_points": len(true),
            "said_metres": nearest(said, true).sum(),
            "true_metres": nearest(true, said).sum(),
        }

    def summarise(self, total: Counts) -> dict[str, float]:
        precision, recall = ratio(total["right"], total["said"]), ratio(total["found"], total["true"])
        wrong = total["said"] - total["right"] + total["true"] - total["found"]
        values = {
            "F1": f1(precision, recall),
            "precision": precision,
            "recall": recall,
            "accuracy": 1.0 - ratio(wrong, total["cells"]),
            "class_F1": f1(
                ratio(total["class_right"], total["said"]), ratio(total["class_found"], total["true"])
            ),
        }
        if total.get("said_points", 0) + total.get("true_points", 0):
            ways = [
                total[f"{side}_metres"] / total[f"{side}_points"] if total[f"{side}_points"] else FAR
                for side in ("said", "true")
            ]
            values["chamfer_m"] = float(sum(ways) / 2)
        return {f"lane/{key}": value for key, value in values.items()}


def compare_cells(truth: np.ndarray, said: np.ndarray) -> Counts:
    """Counts of lane cells of two maps (H, W), 255 = none: how many, and how many agree within one cell."""
    true_cells, said_cells = truth != NO_LANE, said != NO_LANE
    counts = {"cells": truth.size, "true": int(true_cells.sum()), "said": int(said_cells.sum())}
    counts["right"] = int((said_cells & widened(true_cells)).sum())
    counts["found"] = int((true_cells & widened(said_cells)).sum())
    numbers = np.intersect1d(truth[true_cells], said[said_cells])
    maps = [(truth == number, said == number) for number in numbers]
    counts["class_right"] = sum(int((b & widened(a)).sum()) for a, b in maps)
    counts["class_found"] = sum(int((a & widened(b)).sum()) for a, b in maps)
    return counts


def widened(cells: np.ndarray) -> np.ndarray:
    """``cells`` (H, W) bool and their eight neighbours."""
    padded = np.pad(cells, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def nearest(points: np.ndarray, others: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """(M,) metres from each point (M, 2) to the nearest of ``others`` (K, 2), at most FAR."""
    if not len(others):
        return np.full(len(points), FAR)
    parts = [points[start : start + chunk, None] - others[None] for start in range(0, len(points), chunk)]
    found = [np.hypot(part[..., 0], part[..., 1]).min(axis=1) for part in parts]
    return np.minimum(np.concatenate([*found, np.zeros(0)]), FAR)


def f1(precision: float, recall: float) -> float:
    """Harmonic mean; 0 where both are 0."""
    return ratio(2 * precision * recall, precision + recall)


def _joined(lines: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*lines, np.zeros((0, 2))])
