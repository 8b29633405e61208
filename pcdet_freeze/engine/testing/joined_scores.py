"""Metrics of a joined data set: over all frames, and of each of its sets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pcdet_freeze.engine.testing.scoring import FrameResult, TaskCounter, score
from pcdet_freeze.evaluation import PrecisionRecall

Annos = Sequence[dict[str, Any] | None]
Official = tuple[str, dict[str, float]] | None
"""what the tool of a data set says of its boxes: text and values; None: it has none of its own"""


@dataclass(frozen=True)
class EvaluatedFrames:
    """Stands for a data set, or one of a joined set, whose annotations have been read."""

    annos: Annos
    """of each frame; None: no box labels"""
    official: Official = None
    labelled_classes: tuple[str, ...] | None = None
    """of frames whose annotations do not say it; None: all"""

    def __len__(self) -> int:
        return len(self.annos)

    def ground_truth_annos(self) -> Annos:
        """The annotations."""
        return self.annos

    def official_scores(self, annos: Sequence[dict[str, Any]]) -> Official:
        """The scores of the set's own tool, which have been computed."""
        return self.official


def score_with_parts(
    cfg: Mapping[str, Any],
    dataset: Any,
    frames: Sequence[FrameResult],
    recall: Mapping[str, float],
    counter: TaskCounter,
    logger: logging.Logger,
    points: list[PrecisionRecall] | None = None,
) -> dict[str, float]:
    """As :func:`scoring.score`; for a joined set (``dataset.parts``) with the metrics of each set, too.

    ``kitti/Car_3d/moderate_R40``: the metric of the set kitti. A set has the metrics of the tasks that it has
    labels for. The boxes of a set with a tool of its own are scored by it, and not among those of all sets.
    Raises DataError as :func:`scoring.score`.
    """
    parts, labelled = getattr(dataset, "parts", ()), getattr(dataset, "labelled_classes", None)
    if not parts or len(frames) != len(dataset):
        return score(cfg, dataset, frames, recall, counter, logger, points)
    truth = list(dataset.ground_truth_annos())
    officials = {part.name: _official(part, frames[part.frames], truth[part.frames]) for part in parts}
    together = list(truth)
    for part in parts:
        if officials[part.name] is not None:
            together[part.frames] = [None] * len(together[part.frames])
    found: dict[str, float] = {}
    if _is_scored(_scorable(frames, together)) or not any(officials.values()):
        whole = EvaluatedFrames(together, None, labelled)
        found = score(cfg, whole, frames, recall, counter, logger, points)
    for part in parts:
        own = _scorable(frames[part.frames], truth[part.frames])
        if not _is_scored(own):
            logger.info("%s has no label of a task that the model predicts", part.name)
            continue
        logger.info("%s alone:", part.name)
        given = EvaluatedFrames(truth[part.frames], officials[part.name], labelled)
        curves: list[PrecisionRecall] = []
        values = score(cfg, given, own, {}, _counter_of(part, dataset, counter), logger, curves)
        if points is not None:
            points += [curve.named(f"{part.name}/{curve.name}") for curve in curves]
        found |= {f"{part.name}/{key}": value for key, value in values.items()}
    return found


def _official(part: Any, frames: Sequence[FrameResult], truth: Annos) -> Official:
    """Scores of the set's own tool, which knows its own frame ids."""
    tool = getattr(part.dataset, "official_scores", None)
    if tool is None or all(anno is None for anno in truth) or not all("name" in f.anno for f in frames):
        return None
    begin = f"{part.name}/"
    annos = [frame.anno | {"frame_id": str(frame.anno["frame_id"]).removeprefix(begin)} for frame in frames]
    found: Official = tool(annos)
    return found


def _counter_of(part: Any, dataset: Any, counter: TaskCounter) -> TaskCounter:
    """The counter of a set that has the point classes of the joined one: with its benchmark's mean."""
    own = tuple(part.dataset.semantic_class_names)
    return TaskCounter(part.dataset) if own and own == tuple(dataset.semantic_class_names) else counter


def _is_scored(frames: Sequence[FrameResult]) -> bool:
    """Whether a task of ``frames`` can be scored."""
    return any(frame.counts or "name" in frame.anno for frame in frames)


def _scorable(frames: Sequence[FrameResult], truth: Annos) -> list[FrameResult]:
    """The frames of a set without the tasks that none of them has a label for."""
    tasks = {task for frame in frames for task, counts in frame.counts.items() if counts is not None}
    boxes = any(anno is not None for anno in truth)
    return [
        replace(
            frame,
            anno=frame.anno if boxes else {"frame_id": frame.anno.get("frame_id")},
            counts={task: counts for task, counts in frame.counts.items() if task in tasks},
        )
        for frame in frames
    ]
