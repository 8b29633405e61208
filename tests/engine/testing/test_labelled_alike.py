"""A class is scored over the frames that are labelled for it."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from pcdet_freeze.engine.testing.scoring import FrameResult, TaskCounter, labelled_alike, score

CFG = {"CLASS_NAMES": ["Car", "Cyclist"], "MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "kitti"}}}


def anno(names: list[str], **more: Any) -> dict[str, Any]:
    """Objects beside each other, all of one size."""
    n, y = len(names), np.arange(len(names)) * 5.0
    return {
        "name": np.array(names), "truncated": np.zeros(n), "occluded": np.zeros(n, int), "alpha": np.zeros(n),
        "bbox": np.stack([y * 30, 0 * y, y * 30 + 60, 0 * y + 60], 1), "dimensions": np.full((n, 3), 2.0),
        "location": np.stack([y, 0 * y, 0 * y + 9], 1), "rotation_y": np.zeros(n), **more,
    }  # fmt: skip


class Frames:
    """Sixty frames of a car and a cyclist; in the second half no car is labelled."""

    labelled_classes = None
    both, half = ["Car", "Cyclist"], ["Cyclist"]

    def __len__(self) -> int:
        return 60

    def ground_truth_annos(self) -> list[dict[str, Any]]:
        second = anno(self.half, labelled_classes=self.half)
        return [anno(self.both)] * 30 + [second | {"location": np.array([[5.0, 0, 9]])}] * 30


def found(dataset: Any) -> dict[str, float]:
    frames = [FrameResult(anno(Frames.both, score=np.array([0.9, 0.8])))] * len(dataset)
    return score(CFG, dataset, frames, {}, TaskCounter(dataset), logging.getLogger("pcdet_freeze.test"))


def test_frames_without_labels_of_a_class_hold_no_false_detections_of_it() -> None:
    values = found(Frames())
    assert values["Cyclist_3d/moderate_R40"] == 100
    # 30 cars: a curve of at most 30 points, of which the first is left out
    assert values["Car_3d/moderate_R40"] == pytest.approx(100 * 29 / 40)


def test_a_class_that_no_frame_is_labelled_for_is_named(caplog: pytest.LogCaptureFixture) -> None:
    dataset = Frames()
    dataset.both, dataset.labelled_classes = ["Cyclist"], ["Cyclist"]  # type: ignore[assignment]
    values = found(dataset)
    assert not any(key.startswith("Car") for key in values)
    assert "Car (no frame is labelled for it)" in caplog.text


def test_classes_that_are_labelled_alike_are_scored_together() -> None:
    names = ["A", "B", "C"]
    frames = [None, {}, {"labelled_classes": ["A", "C"]}]
    assert labelled_alike(frames, None, names) == [(["A", "C"], [1, 2]), (["B"], [1])]
    assert labelled_alike(frames, ["B"], names) == [(["A", "C"], [2]), (["B"], [1])]
    assert labelled_alike([{}, {}], None, names) == [(names, [0, 1])]
    assert labelled_alike([None], None, names) == []
