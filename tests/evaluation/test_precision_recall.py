"""Counts of the precision curves: the numbers from which the average precisions are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kitti_toys import BESIDE, ENOUGH, car, drives, golden_annos

from pcdet_freeze.evaluation import EVALUATORS, PrecisionRecall
from pcdet_freeze.evaluation.kitti import evaluate
from pcdet_freeze.evaluation.range_ap import evaluate_once


def test_counts_precision_and_recall_are_those_of_the_detections_above_a_threshold() -> None:
    truth = drives(car(), frames=4)
    said = drives(car(score=0.9), car(score=0.5, **BESIDE), frames=2) + drives(car(score=0.3), frames=2)
    points = {curve.name: curve for curve in evaluate(truth, said, "Car").points}
    found = points["Car_3d/moderate"]
    assert sorted(points) == [f"Car_{m}/{d}" for m in ("3d", "bev") for d in ("easy", "hard", "moderate")]
    assert found.labels == 4 and found.thresholds.tolist() == [0.9, 0.9, 0.3, 0.3]
    assert found.true.tolist() == [2, 2, 4, 4] and found.false.tolist() == [0, 0, 2, 2]
    assert found.precision.tolist() == pytest.approx([1, 1, 4 / 6, 4 / 6])
    assert found.recall.tolist() == [0.5, 0.5, 1, 1]


def test_the_average_precision_is_that_of_the_counts(reference: Path) -> None:
    truth, said = golden_annos(reference)
    points: list[PrecisionRecall] = []
    evaluator = EVALUATORS.get("kitti")
    _, values = evaluator(truth, said, ["Car", "Pedestrian"], points=points)  # type: ignore[call-arg]
    assert points
    for curve in points:
        precision = np.zeros(41)
        precision[: len(curve.true)] = np.maximum.accumulate(curve.precision[::-1])[::-1]
        assert values[f"{curve.name}_R40"] == pytest.approx(100 * precision[1:].mean(), abs=1e-12)


def test_a_class_without_labels_has_no_curve() -> None:
    assert evaluate(drives(car()), drives(car()), ["Car", "Cyclist"]).points
    assert not evaluate(drives(car()), drives(car()), ["Cyclist"]).points


def test_ap_by_distance_has_a_curve_for_each_distance_with_labels() -> None:
    boxes = {
        "name": np.array(["Car"] * 2),
        "boxes_lidar": np.array([[x, 0, 0, 4, 2, 1, 0] for x in (9.0, 40)]),
    }
    points: list[PrecisionRecall] = []
    evaluate_once(
        [boxes] * ENOUGH, [{**boxes, "score": np.array([0.9, 0.8])}] * ENOUGH, ["Car"], None, points
    )
    assert [curve.name for curve in points] == [
        "AP_Vehicle/overall", "AP_Vehicle/0-30m", "AP_Vehicle/30-50m",
    ]  # fmt: skip
    assert [curve.labels for curve in points] == [2 * ENOUGH, ENOUGH, ENOUGH]
    assert all(curve.precision.min() == 1 and curve.recall[-1] == 1 for curve in points)
