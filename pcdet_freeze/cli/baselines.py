"""Score what needs no network, to compare with: segmentation by height alone, lanes by bright cells."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.config import cfg_from_args
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.collate import collate
from pcdet_freeze.engine.arguments import whole
from pcdet_freeze.engine.testing.scoring import FrameResult, TaskCounter
from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation import table
from pcdet_freeze.evaluation.baselines import BrightCells, HeightClasses

Frame = tuple[np.ndarray, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The config of the data, and how much of it to look at."""
    parser.add_argument("--cfg_file", required=True, help="config with DATA_CONFIG and CLASS_NAMES")
    parser.add_argument("--scenes", type=whole(1), default=40, help="training frames that both learn from")
    parser.add_argument("--out", type=Path, help="write the figures there, with the keys of result.json")
    parser.add_argument("--set", dest="set_cfgs", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")


def run(args: argparse.Namespace) -> int:
    """Print the table over all test frames; returns the exit code."""
    cfg = cfg_from_args(args)
    values = baselines(cfg, args.scenes)
    print(table({}, values))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    return 0


def baselines(cfg: Any, scenes: int) -> dict[str, float]:
    """Figures of both baselines, learned on ``scenes`` training frames, over all test frames.

    DataError where the data set has neither point labels nor lane maps.
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
