"""Lane metrics: cells with a tolerance of one cell, classes, and the Chamfer distance in metres."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation import MetricContext
from pcdet_freeze.evaluation.lanes import MAX_DISTANCE, LaneMetric, dilate, nearest
from pcdet_freeze.evaluation.tasks import add_up
from pcdet_freeze.ops.lanes import along, line_points

LIMITS = (0.0, -5.0, -3.0, 20.0, 5.0, 1.0)  # 20 x 40 cells of half a metre


def lines(**rows: int) -> np.ndarray:
    """A map with straight lines along x: lines(a=5) has line 0 in row 5, of all columns."""
    lane_map = np.full((20, 40), 255, np.uint8)
    for number, row in enumerate(rows.values()):
        lane_map[row] = number
    return lane_map


def score(*frames: tuple[np.ndarray, np.ndarray], **more: Any) -> dict[str, float]:
    metric = LaneMetric(MetricContext(point_cloud_range=LIMITS))
    return metric.summarise(add_up([metric.count(t, {"pred_lane_map": p, **more}) for t, p in frames]))


def test_the_ground_truth_scores_one() -> None:
    truth = lines(left=15, right=5)
    assert score((truth, truth)) == {
        "lane/F1": 1.0, "lane/precision": 1.0, "lane/recall": 1.0, "lane/accuracy": 1.0, "lane/class_F1": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("shift", "right"), [(1, 1.0), (2, 0.0)])
def test_a_prediction_one_cell_away_is_correct_and_two_cells_away_is_wrong(shift: int, right: float) -> None:
    values = score((lines(a=10), lines(a=10 + shift)))
    assert values["lane/F1"] == values["lane/class_F1"] == right
    assert values["lane/accuracy"] == (1.0 if right else 1 - 80 / 800)


def test_precision_is_over_predicted_cells_and_recall_over_ground_truth() -> None:
    half = lines(a=15, b=5)
    half[15, 20:] = 255
    values = score((lines(a=15), half))
    assert values["lane/precision"] == 20 / 60
    assert values["lane/recall"] == 21 / 40  # the cell beside the half that is said is within tolerance
    assert values["lane/F1"] == pytest.approx(2 * (1 / 3) * (21 / 40) / (1 / 3 + 21 / 40))


def test_a_wrong_line_number_only_affects_the_class() -> None:
    truth = lines(left=15, right=5)
    swapped = lines(right=5, left=15)
    values = score((truth, swapped))
    assert (values["lane/F1"], values["lane/class_F1"]) == (1.0, 0.0)


def test_cells_of_all_frames_are_counted_together() -> None:
    none = lines()
    values = score((lines(a=4), lines(a=4)), (lines(a=4), none))
    assert (values["lane/precision"], values["lane/recall"]) == (1.0, 0.5)


def test_no_predicted_line_gives_f1_zero_and_an_empty_map_has_full_accuracy() -> None:
    assert score((lines(a=4), lines()))["lane/F1"] == 0.0
    assert score((lines(), lines()))["lane/accuracy"] == 1.0


def test_a_map_of_another_size_is_an_error() -> None:
    with pytest.raises(DataError, match=r"size of lane_map, \(20, 40\); got \(10, 20\)"):
        score((lines(a=3), np.full((10, 20), 255, np.uint8)))


def test_the_chamfer_distance_is_in_metres() -> None:
    truth = lines(a=10)  # its middle is at y = 0.25
    polyline = np.array([[0.25, 1.25], [19.75, 1.25]], np.float32)
    assert score((truth, truth), pred_lanes=[polyline])["lane/chamfer_m"] == pytest.approx(1.0)


def test_a_missed_or_false_line_has_the_maximum_distance() -> None:
    assert score((lines(a=10), lines()), pred_lanes=[])["lane/chamfer_m"] == MAX_DISTANCE
    made_up = score((lines(), lines()), pred_lanes=[np.array([[1.0, 1.0], [2.0, 1.0]])])
    assert made_up["lane/chamfer_m"] == MAX_DISTANCE
    assert "lane/chamfer_m" not in score((lines(), lines()), pred_lanes=[])


def test_the_points_of_a_line_are_on_its_centre_for_any_direction() -> None:
    along_x, along_y = lines(), lines()
    along_x[8:10, :] = 0
    along_y[:, 8:11] = 3
    assert np.unique(line_points(along_x, LIMITS)[0][:, 1]).tolist() == [-0.5]
    assert np.unique(line_points(along_y, LIMITS)[0][:, 0]).tolist() == [4.75]


def test_each_number_is_a_separate_line() -> None:
    assert [len(points) for points in line_points(lines(a=2, b=9), LIMITS)] == [40, 40]
    assert line_points(lines(), LIMITS) == []


def test_a_polyline_is_sampled_with_its_ends() -> None:
    points = along(np.array([[0, 0], [3, 4], [3, 5]]), 1.0)
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [3, 5] and len(points) == 7
    assert along(np.zeros((1, 2)), 1.0).shape == (1, 2) and along(np.zeros((2, 2)), 1.0).shape == (2, 2)


def test_nearest_is_the_least_of_all_distances() -> None:
    rng = np.random.RandomState(0)
    a, b = rng.uniform(0, 9, (50, 2)), rng.uniform(0, 9, (30, 2))
    plain = np.minimum(np.linalg.norm(a[:, None] - b, axis=2).min(axis=1), MAX_DISTANCE)
    np.testing.assert_array_equal(nearest(a, b, chunk=7), nearest(a, b))
    np.testing.assert_allclose(nearest(a, b), plain)


def test_widening_reaches_all_eight_neighbours_and_stops_at_the_edge() -> None:
    cells = np.zeros((4, 5), bool)
    cells[0, 0] = cells[3, 4] = True
    assert np.argwhere(dilate(cells)).tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [2, 3], [2, 4], [3, 3], [3, 4],
    ]  # fmt: skip
