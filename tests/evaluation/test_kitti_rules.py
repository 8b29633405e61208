"""The rules of the benchmark on scenes with an obvious average precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kitti_toys import BESIDE, ENOUGH, as_arrays, car, dont_care, drives, frame, golden_annos

from pcdet_freeze.evaluation.kitti import get_official_eval_result

METRICS = ("image", "bev", "3d", "aos")
ONE_WRONG = 100 * ENOUGH / (ENOUGH + 1)


def score(gt_annos, dt_annos, name="Car"):
    return get_official_eval_result(gt_annos, dt_annos, name)[1]


def with_one_more(annos, *objects):
    """The same frames with additional objects in the first one."""
    return [frame(car(), *objects), *annos[1:]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("level", ["easy", "moderate", "hard"])
def test_perfect_detections_score_100(metric, level):
    values = score(drives(car()), drives(car()))
    assert values[f"Car_{metric}/{level}_R40"] == 100
    assert values[f"Car_{metric}_0.70/{level}_R11"] == 100


def test_fewer_labels_than_recall_points_stay_below_100_as_in_the_devkit():
    values = score(drives(car(), frames=21), drives(car(), frames=21))
    assert values["Car_3d/easy_R40"] == 100 * 20 / 40
    assert values["Car_3d_0.70/easy_R11"] == pytest.approx(100 * 6 / 11)


def test_half_of_the_labels_found_gives_half_of_the_recall_points():
    values = score(drives(car(), frames=82), drives(car(), frames=41) + drives(frames=41))
    assert values["Car_3d/easy_R40"] == 50
    assert values["Car_3d_0.70/easy_R11"] == pytest.approx(100 * 6 / 11)  # 0, 0.1 ... 0.5


def test_a_false_positive_above_the_others_costs_precision_at_every_recall():
    values = score(drives(car()), with_one_more(drives(car()), car(**BESIDE, score=0.95)))
    for metric in METRICS:
        assert values[f"Car_{metric}/easy_R40"] == pytest.approx(ONE_WRONG)


def test_a_false_positive_below_the_last_true_positive_costs_nothing():
    values = score(drives(car()), with_one_more(drives(car()), car(**BESIDE, score=0.1)))
    assert values["Car_3d/easy_R40"] == 100


def test_a_second_detection_of_the_same_label_is_false():
    assert score(drives(car()), drives(car(), car()))["Car_3d/easy_R40"] == 50


def test_a_detection_on_a_dont_care_region_is_not_counted_in_the_image():
    labels = with_one_more(drives(car()), dont_care(left=300.0))
    values = score(labels, with_one_more(drives(car()), car(**BESIDE, score=0.95)))
    assert values["Car_image/easy_R40"] == values["Car_aos/easy_R40"] == 100
    assert values["Car_bev/easy_R40"] == values["Car_3d/easy_R40"] == pytest.approx(ONE_WRONG)


def test_a_dont_care_region_must_cover_more_than_the_minimum_overlap():
    labels = with_one_more(drives(car()), dont_care(left=330.0))  # covers 70 of 100 pixels
    values = score(labels, with_one_more(drives(car()), car(**BESIDE, score=0.95)))
    assert values["Car_image/easy_R40"] == pytest.approx(ONE_WRONG)


def test_a_heading_flipped_by_pi_changes_nothing_in_3d_and_takes_all_orientation():
    values = score(drives(car()), drives(car(rotation_y=math.pi, alpha=math.pi)))
    assert values["Car_3d/easy_R40"] == values["Car_image/easy_R40"] == 100
    assert values["Car_aos/easy_R40"] == pytest.approx(0, abs=1e-9)


def test_an_observation_angle_off_by_a_right_angle_keeps_half_of_the_orientation():
    assert score(drives(car()), drives(car(alpha=math.pi / 2)))["Car_aos/easy_R40"] == pytest.approx(50)


def test_a_box_half_its_height_too_high_is_found_from_above_only():
    values = score(drives(car()), drives(car(y=1.6 - 0.75)))
    assert values["Car_bev/easy_R40"] == 100
    assert values["Car_3d_0.50/easy_R40"] == 0  # one half over one and a half


def test_a_shift_by_a_fifth_passes_the_loose_overlap_only():
    values = score(drives(car()), drives(car(x=0.8)))  # 3.2 of 4 m shared: 3.2 / 4.8 = 0.67
    assert values["Car_3d_0.50/easy_R40"] == 100
    assert values["Car_3d_0.70/easy_R40"] == values["Car_3d/easy_R40"] == 0


@pytest.mark.parametrize(
    ("harder", "levels"),
    [
        ({"occluded": 1}, ["moderate", "hard"]),
        ({"occluded": 2}, ["hard"]),
        ({"occluded": 3}, []),
        ({"truncated": 0.15}, ["easy", "moderate", "hard"]),
        ({"truncated": 0.3}, ["moderate", "hard"]),
        ({"truncated": 0.5}, ["hard"]),
        ({"truncated": 0.51}, []),
        ({"height": 40.5}, ["easy", "moderate", "hard"]),
        ({"height": 40.0}, ["moderate", "hard"]),
        ({"height": 25.0}, []),
    ],
    ids=str,
)
def test_a_label_counts_from_its_difficulty_on(harder, levels):
    values = score(drives(car(**harder)), drives(car(**harder)))
    found = [level for level in ("easy", "moderate", "hard") if values[f"Car_3d/{level}_R40"] == 100]
    assert found == levels


def test_a_detection_of_a_harder_label_is_ignored():
    labels = with_one_more(drives(car()), car(**BESIDE, occluded=3))
    values = score(labels, with_one_more(drives(car()), car(**BESIDE, score=0.95)))
    assert values["Car_3d/hard_R40"] == 100


def test_a_detection_that_is_too_small_in_the_image_is_not_false():
    small = car(**BESIDE, height=30.0, score=0.95)
    values = score(drives(car()), with_one_more(drives(car()), small))
    assert values["Car_3d/easy_R40"] == 100
    assert values["Car_3d/moderate_R40"] == pytest.approx(ONE_WRONG)


@pytest.mark.parametrize(
    ("wanted", "other", "forgiven"),
    [
        ("Car", "Van", True),
        ("Pedestrian", "Person_sitting", True),
        ("Car", "Truck", False),
        ("Van", "Car", False),
        ("Cyclist", "Pedestrian", False),
    ],
)
def test_a_detection_of_the_neighbour_class_is_ignored_and_any_other_is_false(wanted, other, forgiven):
    labels = [frame(car(wanted), car(other, **BESIDE)), *drives(car(wanted), frames=ENOUGH - 1)]
    found = [frame(car(wanted), car(wanted, **BESIDE, score=0.95)), *drives(car(wanted), frames=ENOUGH - 1)]
    expected = 100 if forgiven else ONE_WRONG
    assert score(labels, found, wanted)[f"{wanted}_3d/easy_R40"] == pytest.approx(expected)


def test_a_neighbour_that_is_not_found_is_not_missed():
    labels = drives(car(), car("Van", **BESIDE))
    assert score(labels, drives(car()))["Car_3d/easy_R40"] == 100


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_neither_the_order_of_frames_nor_that_of_objects_matters(seed):
    rng = np.random.default_rng(seed)
    scene = [random_frame(rng) for _ in range(12)]
    gt_annos, dt_annos = (list(side) for side in zip(*scene, strict=True))
    order = rng.permutation(12)
    shuffled = [[shuffle(rng, annos[i]) for i in order] for annos in (gt_annos, dt_annos)]
    assert score(*shuffled) == pytest.approx(score(gt_annos, dt_annos), abs=1e-9)


def test_only_the_order_of_scores_matters(reference):
    gt_annos, dt_annos = golden_annos(reference)
    squeezed = as_arrays([{**anno, "score": 5 * anno["score"] - 40} for anno in dt_annos])
    assert score(gt_annos, squeezed) == score(gt_annos, dt_annos)


def random_frame(rng):
    """Cars in a row without contact, approximate detections, some false ones; all scores differ."""
    places = [{"x": 6.0 * i, "left": 150.0 * i} for i in range(5)]
    labels = [car(**place, occluded=int(rng.integers(0, 4))) for place in places[: rng.integers(0, 6)]]
    found = [
        car(x=place["x"] + rng.normal(0, 0.5), left=place["left"], score=rng.random())
        for place in places
        if rng.random() < 0.7
    ]
    return frame(*labels), frame(*found)


def shuffle(rng, anno):
    order = rng.permutation(len(anno["name"]))
    return {key: value[order] for key, value in anno.items()}
