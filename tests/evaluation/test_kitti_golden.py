"""KITTI evaluation compared with the results of an unmodified OpenPCDet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kitti_toys import golden_annos

from pcdet_freeze.evaluation.kitti import KittiScores, evaluate, get_official_eval_result
from pcdet_freeze.evaluation.kitti.overlaps import box_overlaps
from pcdet_freeze.evaluation.kitti.rules import CLASSES, DIFFICULTIES, detection_states, label_states
from pcdet_freeze.evaluation.kitti.tables import read_detections, read_labels

UPSTREAM_NAMES = {"image": "bbox", "bev": "bev", "3d": "3d", "aos": "aos"}


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((reference / "kitti_eval" / "result.json").read_text())
    return result


@pytest.fixture(scope="module")
def scores(reference: Path, golden: dict[str, Any]) -> KittiScores:
    return evaluate(*golden_annos(reference), golden["classes"])


def test_the_text_is_upstreams_letter_by_letter(reference, golden):
    text, _ = get_official_eval_result(*golden_annos(reference), golden["classes"])
    assert text == golden["text"]


def test_the_dict_has_upstreams_keys_and_values(reference, golden):
    _, values = get_official_eval_result(*golden_annos(reference), golden["classes"])
    for key, value in golden["ret_dict"].items():
        assert values[key] == pytest.approx(value, abs=1e-6), key


def test_keys_with_the_overlap_hold_both_overlaps(reference, golden):
    _, values = get_official_eval_result(*golden_annos(reference), ["Car"])
    for o, overlap in enumerate(("0.70", "0.50")):
        assert values[f"Car_3d_{overlap}/moderate_R40"] == pytest.approx(golden["full"]["3d_R40"][0][1][o])
        assert values[f"Car_3d_{overlap}/moderate_R11"] == pytest.approx(golden["full"]["3d"][0][1][o])


@pytest.mark.parametrize("metric", UPSTREAM_NAMES)
def test_average_precision_is_upstreams_for_every_class_difficulty_and_overlap(scores, golden, metric):
    upstream = UPSTREAM_NAMES[metric]
    np.testing.assert_allclose(scores.average(metric, 11), golden["full"][upstream], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        scores.average(metric, 40), golden["full"][f"{upstream}_R40"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("metric", UPSTREAM_NAMES)
def test_every_point_of_every_precision_curve_is_upstreams(scores, golden, metric):
    curves = golden["pr_detail"][UPSTREAM_NAMES[metric]]
    np.testing.assert_allclose(scores.curves[metric], curves, rtol=0, atol=1e-9)


@pytest.mark.parametrize("difficulty", range(3), ids=["easy", "moderate", "hard"])
@pytest.mark.parametrize("number", range(3), ids=["Car", "Pedestrian", "Cyclist"])
def test_the_same_labels_and_detections_count_as_in_upstream(reference, golden, number, difficulty):
    gt_annos, dt_annos = golden_annos(reference)
    wanted = golden["clean_data"][f"class{number}_diff{difficulty}"]
    rule = (CLASSES[number], DIFFICULTIES[difficulty])
    labels = label_states(read_labels(gt_annos), *rule)
    detections = detection_states(read_detections(dt_annos), *rule)
    assert labels.tolist() == [state for frame in wanted["ignored_gt"] for state in frame]
    assert detections.tolist() == [state for frame in wanted["ignored_dt"] for state in frame]
    assert int((labels == 0).sum()) == wanted["num_valid_gt"]


def test_overlaps_from_above_and_in_3d_are_upstreams(reference, golden):
    gt_annos, dt_annos = golden_annos(reference)
    labels, detections = read_labels(gt_annos), read_detections(dt_annos)
    for i in range(len(labels.first) - 1):
        rows, columns = (slice(*table.first[i : i + 2]) for table in (detections, labels))
        bev, volume = box_overlaps(detections, labels, rows, columns)
        wanted = np.array(golden["iou_bev_dt_gt"][i]).reshape(bev.shape)
        # upstream's own distance from the exact polygon area is 3e-4
        np.testing.assert_allclose(bev, wanted, rtol=0, atol=9e-4)
        np.testing.assert_allclose(
            volume, np.array(golden["iou_3d_dt_gt"][i]).reshape(bev.shape), rtol=0, atol=9e-4
        )
