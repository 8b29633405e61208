"""The metrics of task heads in OpenPCDet's evaluation.

The counts of a frame ride in its predictions: OpenPCDet gathers these from all ranks, and drops the frames
that its sampler repeats.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.integrations.openpcdet.tasks.attributes import set_attribute
from pcdet_freeze.integrations.openpcdet.tasks.data import original
from pcdet_freeze.integrations.openpcdet.tasks.heads import counts_key
from pcdet_freeze.integrations.openpcdet.tasks.registry import Task


def attach_metrics(dataset: Any, tasks: Sequence[Task]) -> None:
    """Make the evaluation of ``dataset`` report the metrics of ``tasks``."""
    with_metric = tuple(task for task in tasks if callable(getattr(task.head, "metric", None)))
    if with_metric:
        set_attribute(dataset, "generate_prediction_dicts", PredictionsWithCounts(dataset, with_metric))
        set_attribute(dataset, "evaluation", EvaluationWithMetrics(dataset, with_metric))


class PredictionsWithCounts:
    """Replaces ``dataset.generate_prediction_dicts``: keeps the counts of each frame."""

    def __init__(self, dataset: Any, tasks: tuple[Task, ...]) -> None:
        self.dataset, self.tasks = dataset, tasks

    def __call__(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        make = original(self.dataset, "generate_prediction_dicts")
        annos: list[dict[str, Any]] = make(*args, **kwargs)
        pred_dicts = inspect.signature(make).bind(*args, **kwargs).arguments["pred_dicts"]
        for anno, pred_dict in zip(annos, pred_dicts, strict=True):
            for key in map(counts_key, self.tasks):
                if key in pred_dict:
                    anno[key] = pred_dict[key].cpu().numpy()
        return annos


class EvaluationWithMetrics:
    """Replaces ``dataset.evaluation``: adds ``segment_head/mIoU`` and so on to its text and its dict."""

    def __init__(self, dataset: Any, tasks: tuple[Task, ...]) -> None:
        self.dataset, self.tasks = dataset, tasks

    def __call__(self, det_annos: list[dict[str, Any]], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        keys = {task: counts_key(task) for task in self.tasks}
        boxes = [{k: v for k, v in anno.items() if k not in keys.values()} for anno in det_annos]
        text, numbers = original(self.dataset, "evaluation")(boxes, *args, **kwargs)
        text, numbers = text or "", dict(numbers or {})
        for task, key in keys.items():
            counts = [anno[key] for anno in det_annos if key in anno]
            if counts:
                head: Any = task.head
                found: dict[str, float] = head.metric(np.sum(counts, axis=0))
                numbers.update({f"{task.name}/{name}": value for name, value in found.items()})
                text += f"\n{task.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        return text, numbers
