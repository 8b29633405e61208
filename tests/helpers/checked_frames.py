"""A sound data set of three tasks, and changes that give it one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from easydict import EasyDict
from model_cases import CLASS_NAMES, RANGE
from task_cases import SEMANTIC, task_config

from pcdet_freeze.datasets import DatasetTemplate
from pcdet_freeze.datasets.checks.frame_survey import survey_frame
from pcdet_freeze.engine.data_check.expected import expected_of
from pcdet_freeze.engine.data_check.report import DataReport, judge

XYZI = ["x", "y", "z", "intensity"]
CARS = [(8.0, 1.0), (4.0, -5.0)]
Change = Callable[[int, dict[str, Any]], None]


def checked_cfg() -> EasyDict:
    """A whole config; 400 voxels fit into MAX_NUMBER_OF_VOXELS."""
    return EasyDict({
        "CLASS_NAMES": CLASS_NAMES,
        "DATA_CONFIG": {
            "DATASET": "CheckedFrames",
            "POINT_CLOUD_RANGE": RANGE,
            "POINT_FEATURE_ENCODING": {"used_feature_list": XYZI, "src_feature_list": XYZI},
            "DATA_PROCESSOR": [
                {"NAME": "transform_points_to_voxels", "VOXEL_SIZE": [0.5, 0.5, 4.0],
                 "MAX_POINTS_PER_VOXEL": 4, "MAX_NUMBER_OF_VOXELS": {"train": 400, "test": 400}},
            ],
        },
        "MODEL": task_config("segment", "lane"),
    })  # fmt: skip


def sound_sample(index: int) -> dict[str, Any]:
    """Two cars of 20 points, a pedestrian of 10, a road of 250, two lanes; every point has a class."""
    rng = np.random.RandomState(index)
    boxes = [[x, y, -1.0, 3.9, 1.6, 1.56, 0.0] for x, y in CARS] + [[12.0, 4.0, -0.9, 0.8, 0.6, 1.73, 0.0]]
    parts = [rng.uniform([0, -8, -1.9], [16, 8, -1.8], (250, 3))]
    for box, count in zip(boxes, (20, 20, 10), strict=True):
        parts.append(rng.uniform(-0.45, 0.45, (count, 3)) * box[3:6] + box[:3])
    xyz = np.concatenate(parts)
    points = np.column_stack([xyz, rng.uniform(0, 1, len(xyz))]).astype(np.float32)
    lane_map = np.full((32, 32), 255, np.uint8)
    lane_map[8], lane_map[20] = 0, 1
    return {
        "points": points,
        "frame_id": f"{index:02d}",
        "gt_boxes": np.array(boxes, np.float32),
        "gt_names": np.array(["Car", "Car", "Pedestrian"]),
        "point_labels": np.repeat([0, 1, 2], [250, 40, 10]),
        "lane_map": lane_map,
    }


class CheckedFrames(DatasetTemplate):
    """Twenty frames; ``change`` alters each."""

    labels = ("gt_boxes", "point_labels", "lane_map")
    semantic_class_names = SEMANTIC
    lane_map_shape = (32, 32)
    change: Change | None = None

    def __len__(self) -> int:
        return 20

    def load_sample(self, index: int) -> dict[str, Any]:
        sample = sound_sample(index)
        if self.change is not None:
            self.change(index, sample)
        return sample


def report_of(change: Change | None = None, cfg: EasyDict | None = None, **seen: Any) -> DataReport:
    """The report of the twenty frames, each altered by ``change``."""
    cfg = cfg or checked_cfg()
    dataset = CheckedFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=True)
    dataset.change = change
    surveys = [survey_frame(dataset, index) for index in range(len(dataset))]
    return judge(surveys, expected_of(cfg, dataset, seen or None))
