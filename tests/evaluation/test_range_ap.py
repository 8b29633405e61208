"""AP by distance: ONCE's metric, and the approximation of Waymo's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation import EVALUATORS
from pcdet_freeze.evaluation.range_ap import evaluate_once, evaluate_waymo
from pcdet_freeze.evaluation.range_ap.scoring import recall_thresholds

ONCE = ["Car", "Bus", "Truck", "Pedestrian", "Cyclist"]
WAYMO = ["Vehicle", "Pedestrian", "Cyclist"]


def box(x: float, name: str = "Car", heading: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"name": name, "boxes_lidar": [x, 0.0, 0.0, 4.0, 2.0, 1.5, heading], **more}


def frame(*objects: dict[str, Any]) -> dict[str, Any]:
    columns = {"name": np.array([item["name"] for item in objects], str),
               "boxes_lidar": np.array([item["boxes_lidar"] for item in objects]).reshape(-1, 7)}  # fmt: skip
    for key in ("score", "num_points_in_gt", "difficulty"):
        if all(key in item for item in objects):
            columns[key] = np.array([item[key] for item in objects])
    return columns


def once(truth: list[Any], found: list[Any]) -> dict[str, float]:
    return evaluate_once([frame(*truth)], [frame(*({"score": 0.9, **item} for item in found))], ONCE)[1]


def waymo(truth: list[Any], found: list[Any]) -> dict[str, float]:
    return evaluate_waymo([frame(*truth)], [frame(*({"score": 0.9, **item} for item in found))], WAYMO)[1]


@pytest.mark.parametrize("number", [1, 2, 7, 49, 50, 51, 120])
def test_the_truth_itself_scores_100_for_any_number_of_labels(number: int) -> None:
    objects = [box(5.0 * k, score=1 - k / 200) for k in range(number)]
    assert once(objects, objects)["AP_Vehicle/overall"] == 100


def test_a_column_counts_the_boxes_of_its_distance_alone() -> None:
    truth = [box(10), box(40), box(60)]
    scores = once(truth, [box(10), box(60), box(70, score=0.1)])
    assert scores["AP_Vehicle/0-30m"] == 100 and scores["AP_Vehicle/30-50m"] == 0
    assert scores["AP_Vehicle/50m-inf"] == 100  # a false positive with a lower score
    assert scores["AP_Vehicle/overall"] == pytest.approx(66, abs=1)


def test_a_detection_beyond_the_limit_of_a_column_still_finds_its_label() -> None:
    scores = once([box(29.9)], [box(30.1)])
    assert scores["AP_Vehicle/0-30m"] == 0 and scores["AP_Vehicle/overall"] == 100
    # it is no false positive of the far column, which has no label
    assert "AP_Vehicle/30-50m" not in scores


def test_once_asks_for_the_heading_and_waymos_approximation_does_not() -> None:
    for turn, expected in ((np.pi / 2 - 0.01, 0), (np.pi, 0), (2 * np.pi, 100), (0.05, 100)):
        square = {"boxes_lidar": [10, 0, 0, 2, 2, 2, turn]}
        found = once([box(10) | {"boxes_lidar": [10, 0, 0, 2, 2, 2, 0]}], [box(10) | square])
        assert found["AP_Vehicle/overall"] == (100 if turn < np.pi / 2 else expected)
    turned = waymo([box(10, "Vehicle", num_points_in_gt=9)], [box(10, "Vehicle", np.pi)])
    assert turned["approximate_AP_Vehicle_L1/overall"] == 100


def test_once_takes_cars_buses_and_trucks_as_one_class() -> None:
    scores = once([box(10, "Car"), box(20, "Bus")], [box(10, "Truck"), box(20, "Car")])
    assert scores["AP_Vehicle/overall"] == 100
    assert "AP_Car/overall" not in scores


def test_the_mean_is_over_all_classes() -> None:
    assert once([box(10)], [box(10)])["AP_mean/overall"] == pytest.approx(100 / 3)


def test_precision_is_the_highest_at_a_recall_or_above() -> None:
    truth = [box(10), box(20)]
    found = [box(10, score=0.9), box(15, score=0.8), box(20, score=0.7)]
    # recalls up to 0.74 are reached by the first match, the others by the second, at a precision of 2 / 3
    assert once(truth, found)["AP_Vehicle/overall"] == pytest.approx((37 + 13 * 2 / 3) * 2)


def test_the_minimum_overlap_of_a_class_can_be_set() -> None:
    truth, found = [frame(box(10, "Tram"))], [frame(box(11.2, "Tram", score=0.9))]  # IoU 0.54
    assert evaluate_once(truth, found, ["Tram"])[1]["AP_Tram/overall"] == 100
    assert evaluate_once(truth, found, ["Tram"], {"Tram": 0.6})[1]["AP_Tram/overall"] == 0


def test_waymos_levels_are_those_of_the_points_and_of_the_marks() -> None:
    labels = [(10, 6, 0), (20, 5, 0), (40, 60, 2), (60, 0, 0)]  # x, points, marked level
    truth = [box(x, "Vehicle", num_points_in_gt=points, difficulty=mark) for x, points, mark in labels]
    scores = waymo(truth, [box(10, "Vehicle")])
    assert scores["approximate_AP_Vehicle_L1/overall"] == 100
    assert scores["approximate_AP_Vehicle_L2/overall"] == pytest.approx(33, abs=2)
    assert (
        "approximate_AP_Vehicle_L1/30-50m" not in scores and scores["approximate_AP_Vehicle_L2/30-50m"] == 0
    )
    assert "approximate_AP_Vehicle_L2/50m-inf" not in scores


def test_the_text_says_that_waymos_ap_is_an_approximation() -> None:
    text, values = EVALUATORS.get("waymo")(
        [frame(box(10, "Vehicle", num_points_in_gt=9))], [frame(box(10, "Vehicle", score=0.5))], WAYMO
    )
    assert "APPROXIMATE" in text and "waymo_eval.py" in text
    assert all(key.startswith("approximate_AP_") for key in values)
    assert "Vehicle_L1@0.70" in text and "100.00 (1)" in text


def test_the_mean_recall_around_the_next_match_reaches_a_recall() -> None:
    scores = np.array([0.9, 0.8, 0.7])
    # 4 labels: matches stand for recalls up to 0.375, 0.625 and 0.75
    at = recall_thresholds(scores, 4)
    assert [(at == score).sum() for score in scores] == [19, 13, 6]
    # the last of many matches stands for the next recall too
    assert len(recall_thresholds(np.linspace(1, 0.5, 101), 1000)) == 7


def test_frames_without_boxes_and_classes_without_labels_are_counted() -> None:
    empty = {**frame(), "score": np.zeros(0)}
    text, values = evaluate_once([frame(), frame(box(5))], [empty, empty], ONCE)
    assert values["AP_Vehicle/overall"] == 0 and "AP_Pedestrian/overall" not in values
    assert "-" in text


@pytest.mark.parametrize(("change", "message"), [
    ({"boxes_lidar": np.full((1, 7), np.nan)}, "must be finite"),
    ({"boxes_lidar": np.zeros((2, 7))}, r"dt_annos\[0\]"),
    ({"score": None}, "score"),
])  # fmt: skip
def test_broken_annotations_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_once([frame(box(5))], [{**frame(box(5, score=0.5)), **change}], ONCE)
    with pytest.raises(DataError, match="1 in gt_annos and 0 in dt_annos"):
        evaluate_once([frame(box(5))], [], ONCE)
