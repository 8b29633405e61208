"""KITTI's average precision for classes that the benchmark does not have: EVALUATION.IOU and its default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kitti_toys import ENOUGH, car, drives

from pcdet_freeze.config import cfg_faults, cfg_from_list, load_cfg
from pcdet_freeze.datasets.labels.lidar_annos import add_levels, boxes_to_anno
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.engine.testing.scoring import evaluation_faults, overlaps_of
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.evaluation import EVALUATORS, table

AP = "boat_3d/moderate_R40"


def score(truth: Any, said: Any, *names: str, **overlaps: float) -> tuple[str, dict[str, float]]:
    found: Any = EVALUATORS.get("kitti")
    return found(truth, said, names, overlaps=overlaps)


@pytest.mark.parametrize("name", ["boat", "Truck", "Van", "traffic cone"])
@pytest.mark.parametrize("overlaps", [{}, {"boat": 0.3, "Truck": 0.9, "Van": 0.4, "traffic cone": 0.7}])
def test_ground_truth_against_itself_gives_100_for_any_class(name: str, overlaps: dict[str, float]) -> None:
    text, values = score(drives(car(name)), drives(car(name)), name, **overlaps)
    assert values[f"{name}_3d/moderate_R40"] == values[f"{name}_bev/easy_R40"] == 100
    assert "at most" not in text


@pytest.mark.parametrize("number", [1, 2, 34, ENOUGH - 1])
def test_fewer_labels_than_recall_points_are_named_with_what_they_allow(number: int) -> None:
    truth = drives(car("boat"), frames=number)
    text, values = score(truth, truth, "boat", "Car")
    assert f"boat: {number} labels count (moderate)" in text and "Car:" not in text  # there are no cars
    assert f"AP_R40 is at most {values[AP]:.2f}" in text and values[AP] < 100


def test_boxes_of_a_boats_size_seen_without_a_camera_score_100() -> None:
    rng = np.random.RandomState(0)
    annos = []
    for number in range(60):
        boxes = [[*rng.uniform(-80, 80, 2), 3.5, 38, 9, 15, rng.uniform(-3, 3)]]
        annos.append(add_levels(boxes_to_anno(np.array(boxes), np.array(["boat"]), str(number)), [0], [9]))
    said = [{**anno, "score": np.array([0.5])} for anno in annos]
    assert score(annos, said, "boat")[1][AP] == 100


def test_a_detection_is_found_at_the_overlap_of_its_class() -> None:
    truth, said = drives(car("boat")), drives(car("boat", x=1.6))  # 4 m long: 2.4 of 5.6 m overlap, 0.43
    default = score(truth, said, "boat")[1]
    assert [default[f"boat_3d_{iou}/moderate_R40"] for iou in ("0.50", "0.25")] == [0, 100]
    assert default[AP] == 0 and score(truth, said, "boat", boat=0.4)[1][AP] == 100


def test_a_class_of_the_benchmark_keeps_its_overlaps_unless_it_is_listed() -> None:
    values = score(drives(car()), drives(car()), "Car")[1]
    assert {"Car_3d_0.70/easy_R40", "Car_3d_0.50/easy_R40"} <= values.keys()
    values = score(drives(car()), drives(car()), "Car", Car=0.6)[1]
    assert {"Car_3d_0.60/easy_R40", "Car_3d_0.30/easy_R40"} <= values.keys()
    assert "Car_3d_0.70/easy_R40" not in values


def test_the_table_names_the_overlap() -> None:
    text = table(score(drives(car("boat")), drives(car("boat")), "boat", boat=0.6)[1], {"lane/F1": 1.0})
    assert "boat_3d/moderate_R40 at IoU 0.60" in text and "boat AP_R40@0.60, 0.60, 0.60" not in text


CFG = {"CLASS_NAMES": ["Car", "boat"]}


@pytest.mark.parametrize(("section", "message"), [
    ({"IOU": {"boat": 1.5}}, r"EVALUATION\.IOU\.boat must be an IoU above 0 and up to 1"),
    ({"IOU": {"boat": 0}}, r"EVALUATION\.IOU\.boat must be an IoU"),
    ({"IOU": {"boats": 0.5}}, r"EVALUATION\.IOU\.boats must be one of CLASS_NAMES \(Car, boat\).*boat\?"),
    ({"IOU": 0.5}, r"EVALUATION\.IOU must be"),
    ({"IOUS": {}}, r"EVALUATION\.IOUS is not a key"),
])  # fmt: skip
def test_faults_of_the_section_are_found_before_a_training(section: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overlaps_of({**CFG, "EVALUATION": section})


def test_the_check_of_a_config_includes_the_section() -> None:
    cfg = load_cfg("synthetic_models/pointpillar.yaml")
    cfg_from_list(["EVALUATION.IOU", "{Car: 0.6}"], cfg)
    assert overlaps_of(cfg) == {"Car": 0.6} and cfg_faults(cfg) == evaluation_faults(cfg) == []
    cfg_from_list(["EVALUATION.IOU", "{Boat: 0.6}"], cfg)
    with pytest.raises(ConfigError, match=r"EVALUATION\.IOU\.Boat"):
        check_config(cfg)
