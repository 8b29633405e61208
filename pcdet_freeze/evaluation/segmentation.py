"""Semantic segmentation of points and of cells: IoU per class and its mean.

IoU of a class = true positives / (true positives + false positives + false negatives), counted over the
points (cells) of all frames (Everingham et al., PASCAL VOC, IJCV 2010). Ground truth 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation.tasks import TASK_METRICS, Counts, MetricContext, TaskMetric, ratio
from pcdet_freeze.ops.bev_cells import IGNORE, cell_majority, cells_of


@TASK_METRICS.register_as("segmentation")
class SegmentationMetric(TaskMetric):
    """``segmentation/mIoU``, ``segmentation/IoU/<class>``, ``segmentation/accuracy``, in percent.

    The mean is over the classes that occur in the ground truth; other classes have no IoU. Where the data set
    says so (``absent_classes_count``), the mean is over all classes, with 0 for those that do not occur, as
    SemanticKITTI's benchmark has it (Behley et al., ICCV 2019).
    """

    prediction, label, per_point = "pred_point_labels", "point_labels", True
    task = "segmentation"

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.names = context.semantic_class_names
        if not self.names:
            raise ConfigError(
                "the model predicts point labels, but the data set has no semantic classes "
                "(semantic_class_names). Set DATA_CONFIG.SEMANTIC.CLASSES."
            )

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """truth (N,), prediction["pred_point_labels"] (N,) -> confusion matrix (C, C), see ``confusion``."""
        predicted = np.asarray(prediction[self.prediction])
        if predicted.shape != truth.shape:
            raise DataError(
                f"pred_point_labels must have one label for each of the frame's {len(truth)} points; "
                f"got shape {predicted.shape}"
            )
        return {"confusion": confusion(truth, predicted, len(self.names))}

    def summarise(self, total: Counts) -> dict[str, float]:
        matrix = total["confusion"]
        if not matrix.sum():
            raise DataError(
                "segmentation needs at least one labelled point, but all points of the evaluated frames are "
                f"labelled {IGNORE} (ignore). Check the label files and LABEL_MAP."
            )
        found = np.diag(matrix)
        union = matrix.sum(axis=0) + matrix.sum(axis=1) - found
        occurs = matrix.sum(axis=1) > 0
        ious = 100 * found[occurs] / union[occurs]
        names = np.array(self.names)[occurs]
        classes = len(self.names) if self.context.absent_classes_count else len(ious)
        return {
            f"{self.task}/mIoU": float(ious.sum() / classes),
            f"{self.task}/accuracy": 100 * ratio(found.sum(), matrix.sum()),
            **{f"{self.task}/IoU/{name}": float(iou) for name, iou in zip(names, ious, strict=True)},
        }


@TASK_METRICS.register_as("segmentation_bev")
class BevSegmentationMetric(SegmentationMetric):
    """The same metrics over the cells of the map: ``segmentation_bev/mIoU`` ...

    The ground truth of a cell is the same as in training: the majority label of its labelled points. Cells
    without a labelled point are ignored.
    """

    prediction, extra_keys = "pred_bev_labels", ("points",)
    task = "segmentation_bev"

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """truth (N,); prediction: pred_bev_labels (H, W), points (N, 3+) [sample, x, y, ...] in metres."""
        predicted = np.asarray(prediction[self.prediction])
        if predicted.ndim != 2:
            raise DataError(
                f"pred_bev_labels must be (H, W), one class per cell; got shape {predicted.shape}"
            )
        _check("point_labels", truth[truth != IGNORE], len(self.names))
        points = torch.from_numpy(np.asarray(prediction["points"])[:, :3].copy())
        points[:, 0] = 0
        cells = cells_of(points, self.context.point_cloud_range, predicted.shape)
        true = cell_majority(cells, torch.from_numpy(truth.astype(np.int64)), len(self.names), predicted.size)
        return {"confusion": confusion(true.numpy(), predicted.reshape(-1), len(self.names), self.prediction)}


def confusion(
    truth: np.ndarray, predicted: np.ndarray, classes: int, key: str = "pred_point_labels"
) -> np.ndarray:
    """Confusion matrix (C, C) int64: points of class i (row) predicted as j (column); truth 255 is ignored.

    Raises:
        DataError: a label outside 0..C-1 (or 255 in the truth); the message names it by ``key``.
    """
    valid = truth != IGNORE
    _check("point_labels", truth[valid], classes)
    _check(key, predicted[valid], classes)
    pairs = truth[valid].astype(np.int64) * classes + predicted[valid].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _check(key: str, labels: np.ndarray, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(
            f"{key} must be 0..{classes - 1} for {classes} semantic classes; got {int(wrong[0])} and "
            f"{len(wrong) - 1} more"
        )
