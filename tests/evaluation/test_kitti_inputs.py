"""Valid and invalid inputs of the KITTI evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kitti_toys import BESIDE, car, dont_care, drives, frame

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation import EVALUATORS
from pcdet_freeze.evaluation.kitti import get_official_eval_result

THREE = ["Car", "Pedestrian", "Cyclist"]


@pytest.mark.parametrize(
    ("gt_annos", "dt_annos"),
    [
        ([], []),
        (drives(frames=2), drives(frames=2)),
        (drives(frames=2), drives(car(), frames=2)),
        (drives(car(), frames=2), drives(frames=2)),
        (drives(dont_care(100.0), frames=2), drives(car(), frames=2)),
        (drives(car("Van"), frames=2), drives(car("Truck"), frames=2)),
        (drives(car(), frames=2), drives(car(score=-3.0, **BESIDE), frames=2)),
    ],
    ids=[
        "no frames",
        "empty frames",
        "no labels",
        "no detections",
        "DontCare only",
        "classes nobody asked for",
        "nothing found",
    ],
)
def test_without_true_positives_every_average_is_zero(gt_annos, dt_annos):
    text, values = get_official_eval_result(gt_annos, dt_annos, THREE)
    assert "nan" not in text.lower()
    assert set(values.values()) == {0.0}


def test_boxes_without_extent_overlap_with_nothing():
    point = {"dimensions": [0.0] * 3, "bbox": [100.0] * 4}
    text, values = get_official_eval_result(drives(car(**point)), drives(car(**point)), "Car")
    assert "nan" not in text.lower()
    assert set(values.values()) == {0.0}


def test_an_empty_frame_can_have_flat_arrays_of_any_type():
    empty = {key: np.zeros(0) for key in car()}
    gt_annos, dt_annos = [*drives(car()), empty], [*drives(car()), empty]
    assert get_official_eval_result(gt_annos, dt_annos, "Car")[1]["Car_3d/easy_R40"] == 100


@pytest.mark.parametrize("classes", ["Car", 0, ["Car"], [0], ("Car",), np.array(["Car"])], ids=repr)
def test_classes_are_given_by_name_or_number_one_or_many(classes):
    gt_annos, dt_annos = drives(car()), drives(car())
    assert get_official_eval_result(gt_annos, dt_annos, classes) == get_official_eval_result(
        gt_annos, dt_annos, ["Car"]
    )


def test_names_of_objects_are_compared_without_regard_to_case():
    _, values = get_official_eval_result(drives(car("car")), drives(car("CAR")), "Car")
    assert values["Car_3d/easy_R40"] == 100


def test_the_registered_evaluator_is_the_same_function():
    gt_annos, dt_annos = drives(car()), drives(car())
    evaluator = EVALUATORS.get("kitti")
    assert evaluator(gt_annos, dt_annos, THREE) == get_official_eval_result(gt_annos, dt_annos, THREE)


@pytest.mark.parametrize("side", ["gt", "dt"])
def test_orientation_is_left_out_where_one_side_has_no_angles(side):
    gt_annos = drives(car(alpha=-10.0 if side == "gt" else 0.0))
    dt_annos = drives(car(alpha=-10.0 if side == "dt" else 0.0))
    text, values = get_official_eval_result(gt_annos, dt_annos, "Car")
    assert "aos" not in text
    assert not any("aos" in key for key in values)
    assert values["Car_3d/easy_R40"] == 100


def test_alpha_can_be_missing():
    dt_annos = [{key: value for key, value in anno.items() if key != "alpha"} for anno in drives(car())]
    text, values = get_official_eval_result(drives(car()), dt_annos, "Car")
    assert "aos" not in text
    assert values["Car_3d/easy_R40"] == 100


@pytest.mark.parametrize("classes", ["Tram", ["Car", "car"], 6, -1], ids=repr)
def test_an_unknown_class_is_an_error_that_lists_the_known_ones(classes):
    with pytest.raises(ConfigError, match=r"Car \(0\).*Truck \(5\); got"):
        get_official_eval_result([], [], classes)


def test_no_class_at_all_is_an_error():
    with pytest.raises(ConfigError, match="at least one class"):
        get_official_eval_result([], [], [])


def test_lists_of_different_length_are_an_error_that_gives_both():
    with pytest.raises(DataError, match="got 3 in gt_annos and 2 in dt_annos"):
        get_official_eval_result(drives(frames=3), drives(frames=2), "Car")


@pytest.mark.parametrize("key", ["name", "bbox", "score", "location", "dimensions", "rotation_y"])
def test_a_missing_column_is_an_error_that_names_frame_and_key(key):
    found = {**frame(car()), "frame_id": "000134"}
    del found[key]
    with pytest.raises(DataError, match=rf"dt_annos\[1\] \(frame 000134\).*'{key}'"):
        get_official_eval_result(drives(car(), frames=2), [frame(), found], "Car")


@pytest.mark.parametrize("shape", [(2,), (1, 1), ()])
def test_a_column_of_the_wrong_shape_is_an_error(shape):
    found = {**frame(car()), "score": np.zeros(shape)}
    with pytest.raises(DataError, match=r"dt_annos\[0\]: 'score' must hold numbers of shape \(1,\)"):
        get_official_eval_result(drives(car(), frames=1), [found], "Car")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["score", "rotation_y"])
def test_a_value_that_is_not_finite_is_an_error(key, value):
    with pytest.raises(DataError, match=rf"'{key}' must be finite; got {value}"):
        get_official_eval_result(drives(car(), frames=1), [frame(car(**{key: value}))], "Car")


def test_the_annotations_are_not_modified():
    gt_annos, dt_annos = drives(car(), frames=2), drives(car(), frames=2)
    get_official_eval_result(gt_annos, dt_annos, "Car")
    for annos in (gt_annos, dt_annos):
        for anno, untouched in zip(annos, drives(car(), frames=2), strict=True):
            for key in untouched:
                np.testing.assert_array_equal(anno[key], untouched[key])
