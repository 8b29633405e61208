"""Random frames with the shapes of a data set, for where its files are not there."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcdet_freeze.datasets.labels.label_settings import lane_map_shape
from pcdet_freeze.datasets.loader import label_forms_of
from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.datasets.template import DatasetTemplate

BOX_SIZE = (3.9, 1.6, 1.6)
"""metres along x, y, z"""


class RandomFrames(DatasetTemplate):
    """Points and boxes anywhere in POINT_CLOUD_RANGE, as a data set of this config would give them.

    Reads no file, and makes no augmentation. A frame has points (N, C) with values of [0, 1) beyond x, y, z;
    two gt_boxes a class, with a velocity of zero where DATA_CONFIG.PRED_VELOCITY asks for one; point_labels;
    and lane_map, empty, where DATA_CONFIG.LANE, or the sets of a joined one, say how fine it is.
    """

    points = 20_000
    """points in a frame"""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        cell = (self.dataset_cfg.get("LANE") or {}).get("CELL_SIZE")
        if "DATASETS" in self.dataset_cfg:
            self.lane_map_shape = label_forms_of(self.dataset_cfg).lane_map_shape
        elif cell:  # a lane head takes the size of its map from the data set
            self.lane_map_shape = lane_map_shape(float(cell), self.point_cloud_range)

    def __len__(self) -> int:
        return 2

    def load_sample(self, index: int) -> Sample:
        """Random frame ``index``."""
        rng = self.random_state(index)
        low, high = self.point_cloud_range[:3], self.point_cloud_range[3:]
        extra = rng.uniform(size=(self.points, len(self.point_feature_encoder.src_feature_list) - 3))
        points = np.concatenate([rng.uniform(low, high, (self.points, 3)), extra], axis=1)
        names = np.repeat(self.class_names, 2)
        middle, reach = (low + high) / 2, (high - low) / 4
        centres = middle + rng.uniform(-reach, reach, (len(names), 3))
        sizes = np.broadcast_to(BOX_SIZE, (len(names), 3))
        still = np.zeros((len(names), 2 if self.dataset_cfg.get("PRED_VELOCITY") else 0))
        headings = rng.uniform(-np.pi, np.pi, (len(names), 1))
        boxes = np.concatenate([centres, sizes, headings, still], axis=1)
        return {
            "points": points.astype(np.float32),
            "frame_id": f"random_{index}",
            "gt_boxes": boxes.astype(np.float32),
            "gt_names": names.astype(str),
            "point_labels": np.zeros(self.points, np.int64),
            **self._lane_map(),
        }

    def _lane_map(self) -> dict[str, Any]:
        return {} if self.lane_map_shape is None else {"lane_map": np.zeros(self.lane_map_shape, np.uint8)}
