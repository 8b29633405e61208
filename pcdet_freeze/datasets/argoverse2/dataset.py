"""Argoverse2Sweeps: named sweeps of Argoverse 2 Sensor with boxes, semantics and lane maps.

A small data set, meant for trying a pipeline on real frames: it reads the sweeps that the config lists.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.sweep import Boxes, Sweep
from pcdet_freeze.datasets.frames import LABEL_KEYS
from pcdet_freeze.datasets.label_settings import lane_settings
from pcdet_freeze.datasets.lidar_annos import add_levels, boxes_to_anno, in_range, predicted_annos
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample, check_keys, require
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.ops.lanes import draw_lines

GROUND, OTHER = "ground", "other"
SHARED_KEYS = {
    *("_BASE_CONFIG_", "DATASET", "DATA_PATH", "POINT_CLOUD_RANGE", "POINT_FEATURE_ENCODING"),
    *("DATA_AUGMENTOR", "DATA_PROCESSOR", "KEEP_EMPTY_FRAMES", "INFO_ROOT"),
}
OWN_KEYS = {"SWEEPS", "REPEAT", "CLASS_MAP", "LANE", "MIN_POINTS"}


@DATASETS.register
class Argoverse2Sweeps(DatasetTemplate):
    """Sweeps as ``SWEEPS`` lists them for train and test.

    Keys of DATA_CONFIG besides the template's:

    * ``DATA_PATH``: folder with a folder a log; ``SWEEPS`` {train, test}: lists of ``<log>/<timestamp>``
    * ``CLASS_MAP`` {class: [categories]}: Argoverse's categories by the name that they get here; others keep
      their own
    * ``MIN_POINTS`` [5]: boxes with fewer points get no training box, and do not count in the evaluation
    * ``REPEAT`` [1]: how often a training epoch goes through the sweeps
    * ``LANE``: ``CELL_SIZE`` m, drawn ``WIDTH`` m [0.3], ``PAINTED_ONLY`` [True]

    Semantic classes: ground (by the flow labels), each name of CLASS_MAP (points in its boxes), other. Only
    the first sweep of a log has flow labels: others are labelled in part. Frame: the vehicle's, x forward,
    y left, z up, origin at the rear axle, so the ground is near z = -0.3.
    """

    labels = LABEL_KEYS

    def __init__(
        self,
        dataset_cfg: Config,
        class_names: Sequence[str],
        training: bool = True,
        root_path: str | Path | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        check_keys("DATA_CONFIG (Argoverse2Sweeps)", dataset_cfg, SHARED_KEYS | OWN_KEYS)
        self.class_map = _class_map(require("DATA_CONFIG", dataset_cfg, "CLASS_MAP"))
        self.semantic_class_names = (GROUND, *dict.fromkeys(self.class_map.values()), OTHER)
        super().__init__(dataset_cfg, class_names, training, root_path, logger)
        lane = dict(require("DATA_CONFIG", dataset_cfg, "LANE"))
        self.lane_width = float(lane.pop("WIDTH", 0.3))
        self.painted_only = bool(lane.pop("PAINTED_ONLY", True))
        self._grid = lane_settings(lane, self.point_cloud_range).shape
        self.lane_map_shape = self._grid
        self.min_points = int(dataset_cfg.get("MIN_POINTS", 5))
        self.sweeps = self._sweeps(require("DATA_CONFIG", dataset_cfg, "SWEEPS"))
        self.repeat = int(dataset_cfg.get("REPEAT", 1)) if training else 1
        self._read: dict[int, Sample] = {}

    def _sweeps(self, listed: Any) -> list[Sweep]:
        names = listed.get(self.mode) if isinstance(listed, Mapping) else None
        parts = [str(name).rpartition("/") for name in names or ()]
        if not parts or not all(log and stamp.isdigit() for log, _, stamp in parts):
            raise ConfigError(
                "DATA_CONFIG.SWEEPS must be a mapping with the keys train and test, each a list of "
                f"<log>/<timestamp in ns>; got {listed!r}"
            )
        sweeps = [Sweep(self.root_path / log, int(stamp)) for log, _, stamp in parts]
        missing = [str(sweep.path) for sweep in sweeps if not sweep.path.is_file()]
        if missing:
            raise DataError(
                f"DATA_CONFIG.SWEEPS names sweeps that are not there: {', '.join(missing)}. DATA_PATH is "
                f"{self.root_path.absolute()}"
            )
        return sweeps

    def __len__(self) -> int:
        return len(self.sweeps) * self.repeat

    def frame_name(self, index: int) -> str:
        return self.sweeps[index % len(self.sweeps)].name

    def load_sample(self, index: int) -> Sample:
        """points (N, 4), boxes with at least MIN_POINTS points, lane_map; point_labels where there are.

        A sweep that was read is kept in memory.
        """
        number = index % len(self.sweeps)
        if number not in self._read:
            self._read[number] = self._load(self.sweeps[number])
        kept = self._read[number]
        return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in kept.items()}

    def _load(self, sweep: Sweep) -> Sample:
        points, found = sweep.points(), sweep.boxes()
        names, enough = self._names(found), found.num_points >= self.min_points
        sample: Sample = {
            "points": points,
            "frame_id": sweep.name,
            "gt_boxes": found.boxes[enough],
            "gt_names": names[enough],
        }
        ground = sweep.ground(len(points))
        if ground is not None:
            sample["point_labels"] = self._point_labels(points, found.boxes, names, ground)
        lines = sweep.lane_lines(self.point_cloud_range, self.painted_only)
        if len(lines) > 255:
            raise DataError(
                f"sweep {sweep.name}: {len(lines)} lane lines in range, more than 255; set "
                "LANE.PAINTED_ONLY: True or a smaller POINT_CLOUD_RANGE"
            )
        sample["lane_map"] = draw_lines(lines, self.point_cloud_range, self._grid, self.lane_width)
        return sample

    def _names(self, found: Boxes) -> np.ndarray:
        return np.array([self.class_map.get(category, category) for category in found.categories], dtype=str)

    def _point_labels(
        self, points: np.ndarray, boxes: np.ndarray, names: np.ndarray, ground: np.ndarray
    ) -> np.ndarray:
        """(N,) int64: what a box says of its points, except those that are ground."""
        number = {name: label for label, name in enumerate(self.semantic_class_names)}
        labels = np.full(len(points), number[OTHER], np.int64)
        inside = points_in_boxes_mask(points[:, :3], boxes, margin=0.0)
        for name, mask in zip(names, inside, strict=True):
            labels[mask] = number.get(name, number[OTHER])
        labels[ground] = number[GROUND]
        return labels

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all sweeps (see ``lidar_annos``); all that counts is 'easy'."""
        annos: list[dict[str, Any] | None] = []
        for sweep in self.sweeps:
            found = sweep.boxes()
            counts = (found.num_points >= self.min_points) & in_range(found.boxes, self.point_cloud_range)
            anno = boxes_to_anno(found.boxes, self._names(found), sweep.name)
            annos.append(add_levels(anno, np.where(counts, 0, 3), found.num_points))
        return annos

    def generate_prediction_dicts(
        self,
        batch_dict: dict[str, Any],
        pred_dicts: list[dict[str, Any]],
        class_names: Sequence[str],
        output_path: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions in the frame and with the keys of ``ground_truth_annos``, plus score, pred_labels."""
        return predicted_annos(batch_dict, pred_dicts, class_names, output_path)


def _class_map(given: Any) -> dict[str, str]:
    """Category -> name."""
    good = isinstance(given, Mapping) and all(isinstance(names, list | tuple) for names in given.values())
    if not good or not given or {GROUND, OTHER} & set(given):
        raise ConfigError(
            "DATA_CONFIG.CLASS_MAP must be a mapping of names to lists of Argoverse's categories, such as "
            f"{{Car: [REGULAR_VEHICLE]}}, without {GROUND} and {OTHER}; got {given!r}"
        )
    return {str(category): str(name) for name, categories in given.items() for category in categories}
