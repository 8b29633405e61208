"""Three small data sets with one label each, and a joined set of them that fits ``task_cases.task_model``."""

from __future__ import annotations

from typing import Any

import numpy as np
from easydict import EasyDict
from model_cases import CLASS_NAMES, RANGE

from pcdet_freeze.datasets import DATASETS, DatasetTemplate
from pcdet_freeze.datasets.concat import ConcatDataset
from pcdet_freeze.datasets.labels.lidar_annos import add_levels, boxes_to_anno, predicted_annos
from pcdet_freeze.errors import DataError

XYZI = ["x", "y", "z", "intensity"]
BOXES = np.array([[8, 1, -2, 3.9, 1.6, 1.5, 0.3], [4, -3, -2, 0.8, 0.6, 1.7, -2]], np.float32)
SHIFT = 1.0
"""Z_OFFSET of the boxes"""


class SmallFrames(DatasetTemplate):
    """Frames of 200 points in range; frames in ``bad`` cannot be read."""

    number, count = 0, 0
    bad: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.count

    def load_sample(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise DataError(f"frame {index} is broken")
        rng = np.random.RandomState(1000 * self.number + index)
        others = len(self.point_feature_encoder.src_feature_list) - 3
        points = rng.uniform([0, -8, -3, *[0] * others], [16, 8, 0, *[1] * others], (200, 3 + others))
        return {"points": points.astype(np.float32), "frame_id": f"{index:02d}", **self.label(rng)}

    def label(self, rng: np.random.RandomState) -> dict[str, Any]:
        return {}


@DATASETS.register
class ToyBoxes(SmallFrames):
    """Six frames with a car and a pedestrian, and a calibration that other sets do not have."""

    number, count = 1, 6

    def label(self, rng: np.random.RandomState) -> dict[str, Any]:
        return {"gt_boxes": BOXES.copy(), "gt_names": np.array(["car", "Pedestrian"]), "calib": "of boxes"}

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        annos = [boxes_to_anno(BOXES, np.array(["car", "Pedestrian"]), f"{i:02d}") for i in range(len(self))]
        return [add_levels(anno, [0, 0], [9, 9]) for anno in annos]

    def generate_prediction_dicts(self, batch_dict: Any, pred_dicts: Any, *more: Any) -> Any:
        assert batch_dict["calib"] == ["of boxes"] * len(pred_dicts)
        return predicted_annos(batch_dict, pred_dicts, *more)


@DATASETS.register
class ToyClouds(SmallFrames):
    """Three frames with point labels and without an intensity."""

    number, count = 2, 3
    labels = ("point_labels",)
    semantic_class_names = ("auto", "street")

    def label(self, rng: np.random.RandomState) -> dict[str, Any]:
        return {"point_labels": np.arange(200) % 2}


@DATASETS.register
class ToyLanes(SmallFrames):
    """Two frames with lane maps, and boxes and a point class that nobody wants."""

    number, count = 3, 2
    labels = ("gt_boxes", "lane_map")
    semantic_class_names = ("asphalt",)
    lane_map_shape = (32, 32)

    def label(self, rng: np.random.RandomState) -> dict[str, Any]:
        lane_map = np.full((32, 32), 255, np.uint8)
        lane_map[10], lane_map[20] = 0, 1
        return {"lane_map": lane_map, "gt_boxes": BOXES.copy(), "gt_names": np.array(["Car", "Car"])}


def member(dataset: str, columns: list[str], **more: Any) -> dict[str, Any]:
    encoding = {"used_feature_list": columns, "src_feature_list": columns}
    own = {"DATASET": dataset, "POINT_CLOUD_RANGE": [0, 0, 0, 1, 1, 1], "POINT_FEATURE_ENCODING": encoding}
    return {"DATA_CONFIG": own, **more}


def joined_cfg(**changes: Any) -> EasyDict:
    """DATA_CONFIG of the three; ``changes`` are keys of it."""
    return EasyDict({
        "DATASET": "ConcatDataset",
        "POINT_CLOUD_RANGE": RANGE,
        "DATASETS": {
            "boxes": member("ToyBoxes", XYZI, CLASS_MAP={"car": "Car"}, Z_OFFSET=SHIFT),
            "clouds": member("ToyClouds", XYZI[:3], FILL={"intensity": 0.25},
                             POINT_CLASS_MAP={"auto": "car", "street": "road"}),
            "lanes": member("ToyLanes", [*XYZI, "ring"], LABELS=["lane_map"]),
        },
        "SEMANTIC_CLASSES": ["road", "car", "other"],
        "POINT_FEATURE_ENCODING": {"used_feature_list": XYZI, "src_feature_list": XYZI},
        "DATA_PROCESSOR": [
            {"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True},
            {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}},
            {"NAME": "transform_points_to_voxels", "VOXEL_SIZE": [0.5, 0.5, 4.0], "MAX_POINTS_PER_VOXEL": 4,
             "MAX_NUMBER_OF_VOXELS": {"train": 500, "test": 500}},
        ],
        **changes,
    })  # fmt: skip


def joined(training: bool = True, **changes: Any) -> ConcatDataset:
    return ConcatDataset(joined_cfg(**changes), CLASS_NAMES, training)


FIRST = {"boxes": 0, "clouds": 6, "lanes": 9}
"""first frame of each set; eleven in all"""
