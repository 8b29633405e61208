"""Boxes of the LiDAR frame as annotations of KITTI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pcdet_freeze.datasets.kitti.boxes import lidar_to_camera
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.labels.lidar_annos import boxes_to_anno, predicted_annos

BOX = (10.0, 2.0, -0.5, 4.0, 2.0, 1.6, 0.3)


def predicted(boxes: np.ndarray) -> dict[str, Any]:
    number = len(boxes)
    found = {"pred_labels": torch.ones(number, dtype=torch.long), "pred_scores": torch.ones(number),
             "pred_boxes": torch.from_numpy(boxes)}  # fmt: skip
    return predicted_annos({"frame_id": ["a"]}, [found], ["Car"])[0]


@pytest.mark.parametrize("number", [0, 1, 3, 7, 14])
def test_boxes_with_velocity_are_annotations_like_those_without(number: int) -> None:
    boxes = np.array([BOX] * number, np.float32).reshape(-1, 7) + np.arange(number)[:, None] / 8
    fast = np.column_stack([boxes, np.full((number, 2), 5.0)]).astype(np.float32)
    with_velocity, without = predicted(fast), predicted(boxes.astype(np.float32))
    assert np.array_equal(with_velocity.pop("boxes_lidar"), fast)
    assert without.pop("boxes_lidar").shape == (number, 7)
    for key, values in without.items():
        np.testing.assert_array_equal(with_velocity[key], values)


def test_no_box_of_any_shape_is_an_empty_annotation() -> None:
    for empty in (np.zeros((0, 9)), np.zeros((0, 7)), np.zeros(0)):
        anno = boxes_to_anno(empty, np.zeros(0, str), "a")
        assert anno["location"].shape == (0, 3) and anno["boxes_lidar"].shape[0] == 0


def test_boxes_with_velocity_are_boxes_of_a_camera_too() -> None:
    calib = Calibration(np.eye(3, 4), np.eye(3), np.eye(3, 4))
    for with_velocity, without in zip(
        lidar_to_camera(np.array([[*BOX, 1.0, 2.0]]), calib),
        lidar_to_camera(np.array([BOX]), calib),
        strict=True,
    ):
        np.testing.assert_array_equal(with_velocity, without)
