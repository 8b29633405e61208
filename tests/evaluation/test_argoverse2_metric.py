"""Argoverse 2's metric: cases that are counted by hand, and figures of the package av2 0.3.6."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pcdet_freeze.evaluation import EVALUATORS
from pcdet_freeze.evaluation.argoverse2 import RECALLS, average_precision, evaluate

CAR = (4.0, 2.0, 1.6, 0.0)


def truth(*places: tuple[float, float, float], points: int = 9) -> dict[str, Any]:
    boxes = np.array([[*place, *CAR] for place in places]).reshape(-1, 7)
    return {"name": np.array(["Car"] * len(boxes)), "boxes_lidar": boxes,
            "num_points_in_gt": np.full(len(boxes), points)}  # fmt: skip


def said(*places: tuple[float, float, float, float], box: tuple[float, ...] = CAR) -> dict[str, Any]:
    """Detections at x, y, z with a score."""
    rows = np.array([[*place[:3], *box] for place in places]).reshape(-1, 7)
    return {"name": np.array(["Car"] * len(rows)), "boxes_lidar": rows,
            "score": np.array([place[3] for place in places])}  # fmt: skip


def car(gt: list[dict[str, Any]], dt: list[dict[str, Any]]) -> dict[str, float]:
    return evaluate(gt, dt, ["Car"])["Car"]


def test_the_truth_scores_itself_with_full_marks() -> None:
    places = [(10.0, 0.0, 0.0), (20.0, 5.0, 0.0)]
    found = car([truth(*places)], [said(*[(*place, 0.9) for place in places])])
    assert found["AP"] == found["CDS"] == pytest.approx(1.0)
    assert [found[key] for key in ("ATE", "ASE", "AOE")] == [0.0, 0.0, 0.0]


def test_a_detection_is_correct_at_the_thresholds_that_its_distance_is_below() -> None:
    found = car([truth((10, 0, 0))], [said((10, 0.6, 0.6, 0.9))])  # 0.85 m away, in 3D
    aps = [found[f"AP@{threshold:g}"] for threshold in (0.5, 1, 2, 4)]
    assert aps == pytest.approx([0, 1, 1, 1]) and found["AP"] == pytest.approx(0.75)
    assert found["ATE"] == pytest.approx(np.hypot(0.6, 0.6))


def test_of_the_detections_of_a_label_the_first_counts_even_if_another_is_nearer() -> None:
    two = said((10, 1.5, 0, 0.9), (10, 0.1, 0, 0.8))
    found = car([truth((10, 0, 0))], [two])
    assert found["AP@1"] == 0
    assert found["AP@2"] == pytest.approx(100.5 / 101)  # the second one is false: half at the last recall


def test_average_precision_is_the_mean_at_101_recalls() -> None:
    # right, wrong, right of three labels: precision 1 up to a third, 2/3 at two thirds, then 0
    steps = np.interp(RECALLS, [1 / 3, 1 / 3, 2 / 3], [1, 2 / 3, 2 / 3], right=0)
    found = average_precision(np.array([True, False, True]), 3)
    assert found == pytest.approx(steps.mean()) and len(RECALLS) == 101
    assert average_precision(np.zeros(0, bool), 3) == 0


def test_labels_and_detections_beyond_150_m_or_without_points_do_not_count() -> None:
    far, near = (149.0, 20.0, 0.0), (10.0, 0.0, 0.0)
    found = car([truth(far, near)], [said((*far, 0.99), (*near, 0.5))])
    assert found["AP"] == pytest.approx(1.0)
    assert evaluate([truth(near, points=0)], [said((*near, 0.5))], ["Car"]) == {}


def test_only_the_best_hundred_detections_of_a_class_and_frame_count() -> None:
    labels = truth((50, 50, 0), (10, 0, 0))
    double = [(50.0, 50.0, 0.0, 0.9)] * 100  # one of them is right
    without = car([labels], [said(*double, (10, 0, 0, 0.8))])["AP"]
    assert without == car([labels], [said(*double)])["AP"]
    assert car([labels], [said(*double[:99], (10, 0, 0, 0.8))])["AP"] > without


def test_errors_are_of_the_true_positives_at_two_metres() -> None:
    turned = (2.0, 2.0, 1.6, 3 * np.pi / 2)
    found = car([truth((10, 0, 0))], [said((11, 0, 0, 0.9), box=turned)])
    assert (found["ATE"], found["ASE"], found["AOE"]) == pytest.approx((1.0, 0.5, np.pi / 2))
    assert found["CDS"] == pytest.approx(found["AP"] * 0.5)
    worst = car([truth((10, 0, 0))], [said()])
    assert (worst["ATE"], worst["ASE"], worst["AOE"], worst["CDS"]) == pytest.approx((2, 1, np.pi, 0))


def test_frames_are_matched_by_themselves_and_classes_too() -> None:
    other = said((10, 0, 0, 0.9)) | {"name": np.array(["Bus"])}
    found = evaluate([truth((10, 0, 0)), truth()], [other, said((10, 0, 0, 0.9))], ["Car", "Bus"])
    assert found["Car"]["AP"] == 0 and "Bus" not in found  # no label is a bus


def cloud_of_boxes(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Four frames of labels of two classes, and detections near them, far from them and doubled."""
    rng = np.random.RandomState(seed)
    labels, found = [], []
    for _ in range(4):
        count = rng.randint(15, 30)
        centres = np.column_stack([rng.uniform(-120, 120, (count, 2)), rng.uniform(-1, 1, count)])
        rest = np.column_stack([rng.uniform(0.5, 6, (count, 3)), rng.uniform(-3, 3, count)])
        names = rng.choice(["REGULAR_VEHICLE", "PEDESTRIAN"], count)
        labels.append({"name": names, "boxes_lidar": np.column_stack([centres, rest]),
                       "num_points_in_gt": rng.randint(0, 4, count)})  # fmt: skip
        picked = rng.randint(0, count, 40)
        moved = centres[picked] + rng.normal(0, 1, (40, 3)) * rng.choice([0.3, 1.5, 5], (40, 1))
        turned = rest[picked] * rng.uniform(0.8, 1.2, (40, 4))
        found.append({"name": names[picked], "boxes_lidar": np.column_stack([moved, turned]),
                      "score": rng.permutation(1000)[:40] / 1000})  # fmt: skip
    return labels, found


AV2 = [
    {"REGULAR_VEHICLE": (0.059, 0.696, 0.254, 0.209, 0.046),
     "PEDESTRIAN": (0.122, 0.684, 0.281, 0.128, 0.095)},
    {"REGULAR_VEHICLE": (0.141, 0.750, 0.267, 0.134, 0.109),
     "PEDESTRIAN": (0.116, 0.907, 0.271, 0.124, 0.087)},
    {"REGULAR_VEHICLE": (0.125, 0.791, 0.263, 0.094, 0.097),
     "PEDESTRIAN": (0.096, 0.912, 0.245, 0.196, 0.071)},
    {"REGULAR_VEHICLE": (0.162, 0.777, 0.268, 0.145, 0.124),
     "PEDESTRIAN": (0.152, 0.577, 0.231, 0.142, 0.124)},
]  # fmt: skip
"""AP, ATE, ASE, AOE and CDS that the package (without the region of interest) gives for seeds 0 to 3"""


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_the_package(seed: int) -> None:
    labels, found = cloud_of_boxes(seed)
    scores = evaluate(labels, found, list(AV2[seed]))
    for name, expected in AV2[seed].items():
        ours = [scores[name][key] for key in ("AP", "ATE", "ASE", "AOE", "CDS")]
        assert ours == pytest.approx(expected, abs=5.1e-4)  # it rounds to three digits


def test_the_evaluator_reports_means_and_each_class() -> None:
    labels, found = cloud_of_boxes(1)
    text, values = EVALUATORS.get("av2")(labels, found, ["REGULAR_VEHICLE", "PEDESTRIAN", "DOG"])
    each = [values["av2/AP/REGULAR_VEHICLE"], values["av2/AP/PEDESTRIAN"]]
    assert values["av2/mAP"] == pytest.approx(np.mean(each)) and "av2/AP/DOG" not in values
    assert {"av2/mAP@0.5", "av2/mATE", "av2/CDS"} <= values.keys() and "PEDESTRIAN" in text
