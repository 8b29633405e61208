"""Baselines without a network: class by height, lanes by brightness."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.evaluation.baselines import BrightCells, HeightClasses
from pcdet_freeze.evaluation.lanes import compare_cells

LIMITS = [0.0, -5.0, -3.0, 10.0, 5.0, 1.0]


def at_heights(*heights: float) -> np.ndarray:
    points = np.zeros((len(heights), 4), np.float32)
    points[:, 2] = heights
    return points


def test_each_height_gets_its_most_frequent_class() -> None:
    points = at_heights(-1.75, -1.72, -1.71, 0.55, 0.55)
    fitted = HeightClasses(3).fit([(points[:3], np.array([0, 0, 1])), (points[3:], np.array([2, 2]))])
    assert fitted.predict(at_heights(-1.79, 0.51)).tolist() == [0, 2]


def test_an_unseen_height_gets_the_class_of_the_nearest_one() -> None:
    fitted = HeightClasses(3).fit([(at_heights(-1.75, 0.55), np.array([1, 2]))])
    assert fitted.predict(at_heights(-9, -1.0, 0.0, 9)).tolist() == [1, 1, 2, 2]


def test_points_labelled_255_are_ignored() -> None:
    fitted = HeightClasses(2).fit([(at_heights(0, 0, 0), np.array([255, 255, 1]))])
    assert fitted.predict(at_heights(0)).tolist() == [1]


def painted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright line on the ground along x at y = 2.5, and bright poles beside it."""
    rng = np.random.RandomState(seed)
    ground = rng.uniform([0, -5, -1.8, 0], [10, 5, -1.7, 0.3], (2000, 4))
    line = rng.uniform([0, 2.1, -1.8, 0.7], [10, 2.9, -1.7, 0.8], (200, 4))
    pole = rng.uniform([1, -4, 0, 0.7], [9, -1, 1, 0.9], (300, 4))
    lane_map = np.full((10, 10), 255, np.uint8)
    lane_map[7] = 0
    return np.concatenate([ground, line, pole]).astype(np.float32), lane_map


def test_threshold_and_ceiling_are_those_that_score_best() -> None:
    fitted = BrightCells(LIMITS, (10, 10)).fit([painted(0), painted(1)])
    points, lane_map = painted(2)
    assert fitted.ceiling < 0 and fitted.threshold > 0.3
    counts = compare_cells(lane_map, fitted.predict(points))
    assert counts["correct"] == counts["predicted"] > 0 and counts["found"] == counts["true"] == 10


def test_bright_points_outside_the_map_mark_no_cell() -> None:
    outside = np.array([[-0.1, 0, 0, 1], [10, 0, 0, 1], [5, 5, 0, 1], [5, -5.1, 0, 1]], np.float32)
    cells = BrightCells(LIMITS, (10, 10)).predict(outside)
    assert compare_cells(cells, cells)["predicted"] == 0
