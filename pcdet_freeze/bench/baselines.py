"""Baselines without a network: segmentation by height alone, lanes by bright cells."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.collate import collate
from pcdet_freeze.engine.testing.scoring import FrameResult, TaskCounter
from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation.baselines import BrightCells, HeightClasses

Frame = tuple[np.ndarray, np.ndarray]


def baselines(cfg: Any, scenes: int) -> dict[str, float]:
    """Metrics of both baselines over all test frames, fitted on ``scenes`` training frames.

    The keys are those of ``result.json``. Raises DataError where the data set has neither point labels nor
    lane maps.
    """
    quiet = logging.getLogger("pcdet_freeze.baselines")
    sets = [build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, mode, logger=quiet) for mode in (True, False)]
    training, test = sets
    raw = [training.load_sample(index) for index in range(min(scenes, len(training)))]
    learned: dict[str, Any] = {}
    if seen := _labelled(raw, "point_labels"):
        learned["pred_point_labels"] = HeightClasses(len(training.semantic_class_names)).fit(seen)
    if (seen := _labelled(raw, "lane_map")) and training.lane_map_shape is not None:
        limits = [float(bound) for bound in training.point_cloud_range]
        learned["pred_lane_map"] = BrightCells(limits, training.lane_map_shape).fit(seen)
    if not learned:
        raise DataError(
            f"baselines needs point_labels or lane_map, but no training frame of {type(training).__name__} "
            "has any; see docs/labels.md"
        )
    counter, frames = TaskCounter(test), []
    for index in range(len(test)):
        sample = test[index]
        said = {key: baseline.predict(sample["points"]) for key, baseline in learned.items()}
        frames.append(FrameResult({}, counter.count(collate([sample]), [said])[0]))
    return counter.summarise(frames)[0]


def _labelled(samples: list[dict[str, Any]], key: str) -> list[Frame]:
    return [(sample["points"], sample[key]) for sample in samples if sample.get(key) is not None]
