"""Scenes: labels of a sample, predictions of a model, and which boxes two predictions share."""

from __future__ import annotations

import numpy as np
import torch

from pcdet_freeze.visualization.scene import Scene, kept_boxes, prediction_of, truth_of

LIMITS = [0, -2, -3, 4, 2, 1]
POINTS = np.zeros((3, 4), np.float32)


def boxes(*centres: float) -> Scene:
    found = np.zeros((len(centres), 7), np.float32)
    found[:, 0] = centres
    return Scene(POINTS, found, np.ones(len(centres), np.int64), np.full(len(centres), 0.5))


def test_labels_of_a_sample_become_a_scene() -> None:
    lane_map = np.full((4, 4), 255, np.uint8)
    lane_map[1] = 0
    gt_boxes = np.array([[1, 0, 0, 4, 2, 1, 0.5, 2]], np.float32)
    sample = {"points": POINTS, "gt_boxes": gt_boxes, "point_labels": np.array([0, 1, 255])}
    scene = truth_of({**sample, "lane_map": lane_map}, LIMITS)
    assert scene.boxes.shape == (1, 7) and scene.labels.tolist() == [2] and scene.scores is None
    assert scene.point_classes is not None and scene.point_classes.tolist() == [0, 1, 255]
    np.testing.assert_allclose(scene.lanes[0][:, 1], -0.5)


def test_a_sample_without_labels_is_its_points() -> None:
    scene = truth_of({"points": POINTS}, LIMITS)
    assert (len(scene.boxes), scene.point_classes, scene.lanes) == (0, None, [])


def test_predictions_below_the_score_are_left_out() -> None:
    prediction = {
        "pred_boxes": torch.arange(14.0).reshape(2, 7),
        "pred_labels": torch.tensor([1, 2]),
        "pred_scores": torch.tensor([0.2, 0.7]),
        "pred_lanes": [np.zeros((2, 2))],
    }
    scene = prediction_of(prediction, POINTS, score=0.3)
    assert scene.labels.tolist() == [2] and scene.scores is not None and len(scene.scores) == 1
    assert scene.boxes[0, 0] == 7 and len(scene.lanes) == 1


def test_a_box_is_kept_if_all_its_bits_are() -> None:
    before, after = boxes(1, 2, 3), boxes(3, 2, 1)
    after.boxes[1, 4] = np.nextafter(np.float32(0), np.float32(1))
    assert kept_boxes(before, after).tolist() == [True, False, True]
    after.labels[0] = 2
    assert kept_boxes(before, after).tolist() == [False, False, True]
    assert kept_boxes(before, boxes()).shape == (0,)
