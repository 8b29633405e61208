"""Segmentation metrics: IoU over all frames, by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation import TASK_METRICS, MetricContext
from pcdet_freeze.evaluation.segmentation import BevSegmentationMetric, SegmentationMetric, confusion
from pcdet_freeze.evaluation.tasks import Counts, add_up


@pytest.fixture
def metric() -> SegmentationMetric:
    return SegmentationMetric(MetricContext(semantic_class_names=("road", "car", "pole")))


def score(metric: SegmentationMetric, *frames: tuple[list[int], list[int]]) -> dict[str, float]:
    counts = [
        metric.count(np.array(true), {"pred_point_labels": np.array(predicted)}) for true, predicted in frames
    ]
    return metric.summarise(add_up(counts))


def test_iou_is_the_intersection_by_the_union_of_points(metric: SegmentationMetric) -> None:
    values = score(metric, ([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]))
    assert values["segmentation/IoU/road"] == 100 * 2 / 3
    assert values["segmentation/IoU/car"] == 100 * 1 / 3
    assert values["segmentation/IoU/pole"] == 100 * 1 / 2
    assert values["segmentation/mIoU"] == pytest.approx(50)
    assert values["segmentation/accuracy"] == pytest.approx(100 * 4 / 6)


def test_frames_are_one_pool_of_points_not_a_mean_of_frames(metric: SegmentationMetric) -> None:
    parts = score(metric, ([0, 0, 0, 1], [0, 0, 0, 1]), ([1], [0]))
    assert parts == score(metric, ([0, 0, 0, 1, 1], [0, 0, 0, 1, 0]))
    assert parts["segmentation/IoU/car"] == 50


def test_points_labelled_255_count_nowhere(metric: SegmentationMetric) -> None:
    assert score(metric, ([0, 1, 255, 255], [0, 1, 0, 2])) == score(metric, ([0, 1], [0, 1]))


def test_a_class_that_does_not_occur_has_no_iou_but_counts_as_false_positive(
    metric: SegmentationMetric,
) -> None:
    values = score(metric, ([0, 0, 1, 1], [0, 2, 1, 1]))
    assert "segmentation/IoU/pole" not in values
    assert values["segmentation/mIoU"] == 75


def test_an_empty_frame_adds_nothing(metric: SegmentationMetric) -> None:
    assert score(metric, ([], []), ([0, 1], [0, 1])) == score(metric, ([0, 1], [0, 1]))


def test_all_points_ignored_is_an_error_that_names_the_label_map(metric: SegmentationMetric) -> None:
    with pytest.raises(DataError, match=r"all points .* 255 .*LABEL_MAP"):
        score(metric, ([255, 255], [0, 1]))


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([0, 3], [0, 0], r"point_labels must be 0\.\.2 for 3 semantic classes; got 3"),
        ([0, -1], [0, 0], r"point_labels must be .*got -1"),
        ([0, 0], [0, 7], r"pred_point_labels must be .*got 7"),
        ([0, 0], [0], r"one label for each of the frame's 2 points; got shape \(1,\)"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(
    metric: SegmentationMetric, true: list[int], predicted: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(metric, (true, predicted))


def test_without_class_names_there_is_nothing_to_score() -> None:
    with pytest.raises(ConfigError, match=r"SEMANTIC\.CLASSES"):
        SegmentationMetric(MetricContext())


def test_the_rows_of_a_confusion_are_the_truth() -> None:
    assert confusion(np.array([0, 0, 1]), np.array([1, 1, 1]), 2).tolist() == [[0, 2], [0, 1]]


def test_the_metric_runs_for_every_model_that_predicts_point_labels() -> None:
    kind = TASK_METRICS.get("segmentation")
    assert (kind.prediction, kind.label, kind.per_point) == ("pred_point_labels", "point_labels", True)


POINTS = np.array([[0.5, 0.5], [0.1, 0.9], [0.9, 0.1], [1.5, 0.5], [0.5, 1.5], [9.0, 0.5]])
"""in a map of 2 x 2 cells of one metre; three in one cell, none in the last, one beyond the edge"""


def bev_counts(labels: list[int], predicted: object, points: np.ndarray = POINTS, sample: int = 0) -> Counts:
    kind = BevSegmentationMetric(MetricContext(("road", "car", "pole"), (0, 0, -1, 2, 2, 1)))
    rows = np.column_stack([np.full(len(points), sample), points]).astype(np.float32)
    return kind.count(np.array(labels), {"pred_bev_labels": np.array(predicted), "points": rows})


def test_a_cells_truth_is_the_label_of_most_of_its_points_and_cells_without_one_do_not_count() -> None:
    # cells by row: road (two of three), car (one, and one beyond the edge) / 255, no point
    found = bev_counts([0, 1, 0, 1, 255, 1], [[0, 0], [2, 2]], sample=3)
    assert found["confusion"].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_the_iou_of_cells_is_counted_like_that_of_points() -> None:
    kind = BevSegmentationMetric(MetricContext(("road", "car", "pole"), (0, 0, -1, 2, 2, 1)))
    first = bev_counts([0, 1, 0, 1, 255, 1], [[0, 0], [2, 2]])
    second = bev_counts([2, 2, 1, 1, 1, 255], [[2, 1], [0, 0]])
    # truth road, car | pole, car, car; predicted road, road | pole, car, road
    values = kind.summarise(add_up([first, second]))
    assert values["segmentation_bev/IoU/road"] == pytest.approx(100 / 3)
    assert values["segmentation_bev/IoU/car"] == pytest.approx(100 / 3)
    assert values["segmentation_bev/IoU/pole"] == 100
    assert values["segmentation_bev/mIoU"] == pytest.approx(500 / 9)
    assert values["segmentation_bev/accuracy"] == pytest.approx(60)


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([0, 3, 0, 0, 0, 0], [[0, 0], [0, 0]], r"point_labels must be 0\.\.2 for 3 semantic classes; got 3"),
        ([0] * 6, [[7, 0], [0, 0]], r"pred_bev_labels must be 0\.\.2 .* got 7"),
        ([0] * 6, [0, 0], r"must be \(H, W\),.* got shape \(2,\)"),
    ],
)
def test_cells_that_do_not_fit_are_an_error(labels: list[int], predicted: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        bev_counts(labels, predicted)


def test_an_empty_frame_has_no_cells_that_count() -> None:
    assert not bev_counts([], [[0, 0], [0, 0]], np.zeros((0, 2)))["confusion"].any()
