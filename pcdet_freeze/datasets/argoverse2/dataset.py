"""Argoverse2Sweeps: named sweeps of Argoverse 2 Sensor with boxes, semantics and lane maps.

A small data set, meant for trying a pipeline on real frames: it reads the sweeps that the config lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.base import SweepFrames
from pcdet_freeze.datasets.argoverse2.settings import GROUND, OTHER, SweepSettings
from pcdet_freeze.datasets.argoverse2.sweep import Sweep
from pcdet_freeze.datasets.frames import LABEL_KEYS
from pcdet_freeze.datasets.labels.label_settings import lane_map_shape
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.template import LabelForms
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside


@DATASETS.register
class Argoverse2Sweeps(SweepFrames):
    """Sweeps as ``SWEEPS`` lists them for train and test.

    Semantic classes: ground (by the flow labels), each name of CLASS_MAP (points in its boxes), other. Only
    the first sweep of a log has flow labels: others are labelled in part. Frame: see :class:`SweepFrames`.
    """

    Settings = SweepSettings
    labels = LABEL_KEYS

    def open_files(self, settings: SweepSettings) -> None:
        self.class_map = category_names(settings.class_map)
        self.boundaries = settings.lane
        self.min_points = settings.min_points
        self.sweeps = self._sweeps(settings.sweeps.of(self.training))
        self.repeat = settings.repeat if self.training else 1
        self._read: dict[int, Sample] = {}

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """Ground, the names of CLASS_MAP and everything else; the grid of LANE."""
        settings = cls.read_settings(dataset_cfg)
        grid = lane_map_shape(settings.lane.cell_size, settings.point_cloud_range)
        return LabelForms((GROUND, *settings.class_map, OTHER), grid)

    def _sweeps(self, names: Sequence[str]) -> list[Sweep]:
        parts = [name.rpartition("/") for name in names]
        sweeps = [
            Sweep(inside(self.root_path, log, "a log of SWEEPS"), int(stamp)) for log, _, stamp in parts
        ]
        missing = [str(sweep.path) for sweep in sweeps if not timed(sweep.path, sweep.path.is_file)]
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
        enough = found.num_points >= self.min_points
        sample: Sample = {
            "points": points,
            "frame_id": sweep.name,
            "gt_boxes": found.boxes[enough],
            "gt_names": self.names(found)[enough],
        }
        ground = sweep.ground(len(points))
        if ground is not None:
            sample["point_labels"] = self.classes_of(points, found, ground)
        sample["lane_map"] = self.lane_map(sweep)
        return sample

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all sweeps (see ``lidar_annos``); all that counts is 'easy'."""
        return [self.anno(sweep) for sweep in self.sweeps]


def category_names(class_map: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """CLASS_MAP the other way: category -> name."""
    return {category: name for name, categories in class_map.items() for category in categories}
