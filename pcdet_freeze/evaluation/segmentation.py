"""Semantic segmentation of points and of cells: IoU per class and its mean.

IoU of a class = points (cells) that are and are said to be of it / points that are or are said to be, counted
over all frames together (Everingham et al., PASCAL VOC, IJCV 2010). What is truly 255 counts nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation.tasks import TASK_METRICS, Counts, MetricContext, TaskMetric, ratio
from pcdet_freeze.ops.cells import IGNORE, cell_majority, cells_of


@TASK_METRICS.register_as("segmentation")
class SegmentationMetric(TaskMetric):
    """``segmentation/mIoU``, ``segmentation/IoU/<class>``, ``segmentation/accuracy``, in percent.

    The mean is over the classes that occur in the truth; the others have no IoU.
    """

    prediction, label, per_point = "pred_point_labels", "point_labels", True
    task = "segmentation"

    def __init__(self, context: MetricContext) -> None:
        super().__init__(context)
        self.names = context.semantic_class_names
        if not self.names:
            raise ConfigError(
                "the model predicts point labels, but the data set names no semantic classes "
                "(semantic_class_names): set DATA_CONFIG.SEMANTIC.CLASSES"
            )

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """truth (N,), prediction["pred_point_labels"] (N,) -> confusion (C, C): rows truth, columns said."""
        said = np.asarray(prediction[self.prediction])
        if said.shape != truth.shape:
            raise DataError(
                f"pred_point_labels must have one label for each of the frame's {len(truth)} points; "
                f"got shape {said.shape}"
            )
        return {"confusion": confusion(truth, said, len(self.names))}

    def summarise(self, total: Counts) -> dict[str, float]:
        matrix = total["confusion"]
        if not matrix.sum():
            raise DataError(
                "segmentation needs a labelled point, but all points of the evaluated frames are labelled "
                f"{IGNORE} (ignore); look at the label files and their LABEL_MAP"
            )
        found = np.diag(matrix)
        union = matrix.sum(axis=0) + matrix.sum(axis=1) - found
        occurs = matrix.sum(axis=1) > 0
        ious = 100 * found[occurs] / union[occurs]
        names = np.array(self.names)[occurs]
        return {
            f"{self.task}/mIoU": float(ious.mean()),
            f"{self.task}/accuracy": 100 * ratio(found.sum(), matrix.sum()),
            **{f"{self.task}/IoU/{name}": float(iou) for name, iou in zip(names, ious, strict=True)},
        }


@TASK_METRICS.register_as("segmentation_bev")
class BevSegmentationMetric(SegmentationMetric):
    """The same over the cells of the map: ``segmentation_bev/mIoU`` ...

    A cell's truth is what training takes it for: the label of most of its labelled points. Cells without a
    labelled point do not count, whatever is said of them.
    """

    prediction, beside = "pred_bev_labels", ("points",)
    task = "segmentation_bev"

    def count(self, truth: np.ndarray, prediction: Mapping[str, Any]) -> Counts:
        """truth (N,); prediction: pred_bev_labels (H, W), points (N, 3+) [sample, x, y, ...] in metres."""
        said = np.asarray(prediction[self.prediction])
        if said.ndim != 2:
            raise DataError(f"pred_bev_labels must be (H, W), a class a cell; got shape {said.shape}")
        _check("point_labels", truth[truth != IGNORE], len(self.names))
        points = torch.from_numpy(np.asarray(prediction["points"])[:, :3].copy())
        points[:, 0] = 0
        cells = cells_of(points, self.context.point_cloud_range, said.shape)
        true = cell_majority(cells, torch.from_numpy(truth.astype(np.int64)), len(self.names), said.size)
        return {"confusion": confusion(true.numpy(), said.reshape(-1), len(self.names), self.prediction)}


def confusion(
    truth: np.ndarray, said: np.ndarray, classes: int, key: str = "pred_point_labels"
) -> np.ndarray:
    """(C, C) int64: how many points of class i (row) are said to be j; truth 255 is left out.

    Raises DataError, which calls ``said`` by its ``key``, for a label outside 0..C-1 (and 255 in the truth).
    """
    known = truth != IGNORE
    _check("point_labels", truth[known], classes)
    _check(key, said[known], classes)
    pairs = truth[known].astype(np.int64) * classes + said[known].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _check(key: str, labels: np.ndarray, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(
            f"{key} must be 0..{classes - 1} for {classes} semantic classes; got {int(wrong[0])} and "
            f"{len(wrong) - 1} more"
        )
