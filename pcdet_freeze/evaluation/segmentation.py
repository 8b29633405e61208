"""Semantic segmentation of points: IoU per class and its mean (Everingham et al., PASCAL VOC, IJCV 2010).

IoU of a class = points that are and are said to be of it / points that are or are said to be, counted over
all frames together; points whose true label is 255 count nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation.tasks import TASK_METRICS, Counts, MetricContext, TaskMetric, ratio

IGNORE = 255


@TASK_METRICS.register_as("segmentation")
class SegmentationMetric(TaskMetric):
    """``segmentation/mIoU``, ``segmentation/IoU/<class>``, ``segmentation/accuracy``, in percent.

    The mean is over the classes that occur in the truth; the others have no IoU.
    """

    prediction, label, per_point = "pred_point_labels", "point_labels", True

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
            "segmentation/mIoU": float(ious.mean()),
            "segmentation/accuracy": 100 * ratio(found.sum(), matrix.sum()),
            **{f"segmentation/IoU/{name}": float(iou) for name, iou in zip(names, ious, strict=True)},
        }


def confusion(truth: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) int64: how many points of class i (row) are said to be j; truth 255 is left out.

    Raises DataError for a label outside 0..C-1 (and 255 in the truth).
    """
    known = truth != IGNORE
    for what, labels in (("point_labels", truth[known]), ("pred_point_labels", said[known])):
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise DataError(
                f"{what} must be 0..{classes - 1} for {classes} semantic classes; got {int(wrong[0])} and "
                f"{len(wrong) - 1} more"
            )
    pairs = truth[known].astype(np.int64) * classes + said[known].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
