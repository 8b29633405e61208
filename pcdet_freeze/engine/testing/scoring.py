"""Metrics of predicted frames: boxes by the config's evaluator, every other task by its own metric."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pcdet_freeze.config.schema import EvaluationSettings
from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation import (
    EVALUATORS,
    TASK_METRICS,
    MetricContext,
    PrecisionRecall,
    TaskMetric,
    table,
)
from pcdet_freeze.evaluation.tasks import Counts, add_up
from pcdet_freeze.utils.devices import host_copy
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.names import did_you_mean
from pcdet_freeze.utils.settings.sections import read_section


@dataclass
class FrameResult:
    """One predicted frame, small enough to send between ranks."""

    anno: dict[str, Any]
    """boxes as an annotation dict; only the frame_id if the model predicts no boxes"""
    counts: dict[str, Counts | None] = field(default_factory=dict)
    """for each other predicted task: its counts, None if the frame has no label of it"""


class TaskCounter:
    """Compares the frames of a batch with their labels, for each task of TASK_METRICS that is predicted."""

    def __init__(self, dataset: Any) -> None:
        names = tuple(getattr(dataset, "semantic_class_names", ()))
        limits = tuple(float(bound) for bound in getattr(dataset, "point_cloud_range", ()))
        absent = bool(getattr(dataset, "absent_classes_count", False))
        self.context = MetricContext(names, limits, absent)
        self._metrics: dict[str, TaskMetric] = {}

    def metric(self, task: str) -> TaskMetric:
        """The metric called ``task``, built when it is first used."""
        if task not in self._metrics:
            self._metrics[task] = TASK_METRICS.get(task)(self.context)
        return self._metrics[task]

    def count(
        self, batch: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Counts | None]]:
        """One dict for each frame of the batch; DataError if label and prediction do not match."""
        return [self._frame(batch, index, found) for index, found in enumerate(predictions)]

    def _frame(
        self, batch: Mapping[str, Any], index: int, found: Mapping[str, Any]
    ) -> dict[str, Counts | None]:
        counts: dict[str, Counts | None] = {}
        for task in TASK_METRICS.names():
            kind = TASK_METRICS.get(task)
            if kind.prediction not in found:
                continue
            truth = _truth(batch, kind.label, kind.per_point, index)
            counts[task] = None
            if truth is not None:
                plain = {key: _plain(value) for key, value in found.items()}
                plain |= {key: _rows(batch, key, index) for key in kind.extra_keys}
                counts[task] = self.metric(task).count(truth, plain)
        return counts

    def summarise(self, frames: Sequence[FrameResult]) -> tuple[dict[str, float], list[str]]:
        """Metrics of all tasks, and the predicted tasks that have none, with the reason."""
        values: dict[str, float] = {}
        unscored = []
        for task in dict.fromkeys(name for frame in frames for name in frame.counts):
            counted = [c for frame in frames if (c := frame.counts.get(task)) is not None]
            if counted:
                values |= self.metric(task).summarise(add_up(counted))
            else:
                unscored.append(f"{task} (no frame has {TASK_METRICS.get(task).label})")
        return values, unscored


def _truth(batch: Mapping[str, Any], label: str, per_point: bool, index: int) -> np.ndarray | None:
    """The frame's part of ``batch[label]``; None if it has no such label."""
    flags = batch.get(f"has_{label}")
    if batch.get(label) is None or (flags is not None and not bool(_plain(flags)[index])):
        return None
    return _rows(batch, label, index) if per_point else _plain(batch[label])[index]


def _rows(batch: Mapping[str, Any], key: str, index: int) -> np.ndarray:
    """The frame's rows of ``batch[key]``, which has one row for each point."""
    return _plain(batch[key])[_plain(batch["points"])[:, 0] == index]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return host_copy(value).detach().numpy() if isinstance(value, torch.Tensor) else value


def score(
    cfg: Mapping[str, Any],
    dataset: Any,
    frames: Sequence[FrameResult],
    recall: Mapping[str, float],
    counter: TaskCounter,
    logger: logging.Logger,
    points: list[PrecisionRecall] | None = None,
) -> dict[str, float]:
    """All metrics of ``frames``, which are those of ``dataset`` in order; logs them as one table.

    ``points`` gets the counts of the precision curves, from evaluators that have them.
    A predicted task without a label in any frame is named in a warning.
    Raises DataError if frames are missing, or no predicted task has a label.
    """
    if len(frames) != len(dataset):
        raise DataError(
            f"Every frame must be predicted once, but there are {len(frames)} predictions for "
            f"{len(dataset)} frames of {type(dataset).__name__}."
        )
    tasks, unscored = counter.summarise(frames)
    boxes: dict[str, float] = {}
    if any("name" in frame.anno for frame in frames):
        boxes = _score_boxes(cfg, dataset, [frame.anno for frame in frames], logger, points)
        if not boxes:
            unscored.append("detection (no frame has boxes)")
    result = _recall(recall, logger) | boxes | tasks
    if unscored:
        logger.warning("Predicted, but not scored: %s", "; ".join(unscored))
    if not (boxes or tasks):
        raise DataError(
            f"An evaluation needs labels of a task that the model predicts, but {type(dataset).__name__} has "
            f"none: {'; '.join(unscored) or 'the model predicts nothing'}. Evaluate on another split."
        )
    logger.info("Results:\n%s", table(boxes, tasks))
    return result


def _score_boxes(
    cfg: Mapping[str, Any],
    dataset: Any,
    annos: Sequence[dict[str, Any]],
    logger: logging.Logger,
    points: list[PrecisionRecall] | None,
) -> dict[str, float]:
    """Metrics over the frames that have box labels; empty if none has."""
    truth = dataset.ground_truth_annos()
    if len(annos) != len(truth):
        raise DataError(
            f"Every frame must be predicted once, but there are {len(annos)} predictions for "
            f"{len(truth)} frames of {type(dataset).__name__}."
        )
    objects = sum(len(anno["name"]) for anno in annos) / max(len(annos), 1)
    logger.info("Average predicted number of objects (%d samples): %.3f", len(annos), objects)
    official = getattr(dataset, "official_scores", None)
    if (
        official is not None
        and any(true is not None for true in truth)
        and (own := official(annos)) is not None
    ):
        logger.info("%s", own[0])
        return own[1]
    metric: Any = EVALUATORS.get(_metric_of(cfg))
    offered = {"overlaps": overlaps_of(cfg), "points": points}
    more = {key: value for key, value in offered.items() if key in inspect.signature(metric).parameters}
    result: dict[str, float] = {}
    names = list(cfg["CLASS_NAMES"])
    for classes, frames in labelled_alike(truth, getattr(dataset, "labelled_classes", None), names):
        if not frames:
            logger.warning("Predicted, but not scored: %s (no frame is labelled for it)", ", ".join(classes))
            continue
        if len(classes) < len(names):
            logger.info("%s: the %d frames that are labelled for it", ", ".join(classes), len(frames))
        text, values = metric([truth[i] for i in frames], [annos[i] for i in frames], classes, **more)
        logger.info("%s", text)
        result |= {key: float(value) for key, value in values.items()}
    return result


def labelled_alike(
    truth: Sequence[Mapping[str, Any] | None], default: Sequence[str] | None, names: Sequence[str]
) -> list[tuple[list[str], list[int]]]:
    """Classes that are labelled in the same frames, and these frames; a class counts there only.

    Args:
        truth: labels of each frame, None without boxes; ``labelled_classes``: names of its classes.
        default: the classes of a frame that does not say them; None: all.
        names: all classes.
    """
    if not any(true is not None for true in truth):
        return []
    default = names if default is None else default
    frames_of: dict[tuple[int, ...], list[str]] = {}
    known = [
        (i, set(true.get("labelled_classes", default))) for i, true in enumerate(truth) if true is not None
    ]
    for name in names:
        frames_of.setdefault(tuple(i for i, labelled in known if name in labelled), []).append(name)
    return [(classes, list(frames)) for frames, classes in frames_of.items()]


def check_metric(cfg: Mapping[str, Any]) -> None:
    """Raise ConfigError if MODEL.POST_PROCESSING.EVAL_METRIC is not a registered evaluator."""
    if _metric_of(cfg) is not None:
        EVALUATORS.get(_metric_of(cfg))


def evaluation_faults(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with EVALUATION: values, and classes that CLASS_NAMES does not list."""
    if cfg.get("EVALUATION") is None:
        return []
    settings, faults = read_section(EvaluationSettings, cfg["EVALUATION"], "EVALUATION")
    known = [str(name) for name in cfg.get("CLASS_NAMES") or ()]
    for name in (settings.iou or {}) if settings is not None and known else ():
        if name not in known:
            rule = f"one of CLASS_NAMES ({', '.join(known)})"
            faults.append(f"EVALUATION.IOU.{name} must be {rule}; got {name!r}{did_you_mean(name, known)}")
    return faults


def overlaps_of(cfg: Mapping[str, Any]) -> dict[str, float]:
    """EVALUATION.IOU: class -> least IoU; ConfigError with its faults."""
    raise_faults(evaluation_faults(cfg))
    return {
        str(name): float(value) for name, value in ((cfg.get("EVALUATION") or {}).get("IOU") or {}).items()
    }


def _metric_of(cfg: Mapping[str, Any]) -> Any:
    return (cfg["MODEL"].get("POST_PROCESSING") or {}).get("EVAL_METRIC")


def _recall(counts: Mapping[str, float], logger: logging.Logger) -> dict[str, float]:
    total = max(counts.get("gt", counts.get("gt_num", 0)), 1)
    result = {}
    for key, value in counts.items():
        if key.startswith(("roi_", "rcnn_")):
            result[f"recall/{key}"] = value / total
            logger.info("recall_%s: %f", key, value / total)
    return result
