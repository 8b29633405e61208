"""A task without labels anywhere stops a training before it begins."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from pcdet_freeze.engine.build import require_labels
from pcdet_freeze.errors import DataError
from pcdet_freeze.freezing import freeze


class Head(nn.Module):
    """A head that learns from one label."""

    reads, writes = ("features",), ("answer",)

    def __init__(self, label: str) -> None:
        super().__init__()
        self.reads_train = (label,)
        self.layer = nn.Linear(1, 1)

    def get_loss(self) -> None: ...


class Detector(nn.Module):
    """Three heads."""

    module_names = ("dense_head", "segment_head", "lane_head")

    def __init__(self) -> None:
        super().__init__()
        labels = ("gt_boxes", "point_labels", "lane_map")
        for name, label in zip(self.module_names, labels, strict=True):
            self.add_module(name, Head(label))


def data(*labels: str) -> SimpleNamespace:
    return SimpleNamespace(labels=labels)


def test_all_heads_without_labels_are_told_at_once() -> None:
    with pytest.raises(
        DataError, match=r"has only gt_boxes: segment_head learns from point_labels; lane_head"
    ):
        require_labels(Detector(), data("gt_boxes"))


@pytest.mark.parametrize("missing", ["gt_boxes", "point_labels", "lane_map"])
def test_each_label_that_a_head_learns_from_must_be_in_some_frames(missing: str) -> None:
    every = ["gt_boxes", "point_labels", "lane_map"]
    require_labels(Detector(), data(*every))
    with pytest.raises(DataError, match=f"learns from {missing}"):
        require_labels(Detector(), data(*(label for label in every if label != missing)))


def test_a_frozen_head_needs_none() -> None:
    model = Detector()
    freeze(model, ["dense_head", "lane_head"])
    require_labels(model, data("point_labels"))
    with pytest.raises(DataError, match="none: segment_head learns from point_labels"):
        require_labels(model, data())


def test_a_head_needs_frames_that_are_labelled_for_all_of_its_classes_together() -> None:
    model, labels = Detector(), ("gt_boxes", "point_labels", "lane_map")
    model.dense_head.class_names = ("Car", "Truck")
    apart = SimpleNamespace(
        labels=labels, labelled_classes=("Car", "Truck"), labelled_together=[("Car",), ("Truck",)]
    )
    with pytest.raises(DataError, match=r"dense_head has Car, Truck.*no frame .*together\. .*Car; Truck"):
        require_labels(model, apart)
    apart.labelled_together.append(("Truck", "Car"))
    require_labels(model, apart)


def test_a_data_set_that_does_not_tell_its_labels_is_asked_nothing_and_one_without_labels_is() -> None:
    require_labels(Detector(), SimpleNamespace())
    with pytest.raises(DataError, match="has only none"):
        require_labels(Detector(), SimpleNamespace(labels=()))


def test_a_label_of_a_task_of_ones_own_is_asked_for_too() -> None:
    model = Detector()
    model.lane_head.reads_train = ("height_map", "features_of_another")
    model.dense_head.writes = ("answer", "features_of_another")
    require_labels(model, data("gt_boxes", "point_labels", "height_map"))
    with pytest.raises(DataError, match=r"lane_head learns from height_map\. .*the data set's `labels`"):
        require_labels(model, data("gt_boxes", "point_labels"))


def test_a_head_with_classes_that_no_frame_is_labelled_for_is_an_error_unless_it_is_frozen() -> None:
    model, labels = Detector(), ("gt_boxes", "point_labels", "lane_map")
    model.dense_head.class_names = ("Car", "Truck")
    frames = SimpleNamespace(labels=labels, labelled_classes=("Truck",))
    with pytest.raises(DataError, match=r"labelled for Truck .*dense_head has Car\. .*DENSE_HEADS"):
        require_labels(model, frames)
    freeze(model, ["dense_head"])
    require_labels(model, frames)
