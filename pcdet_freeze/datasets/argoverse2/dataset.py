"""Argoverse2Sweeps: named sweeps of Argoverse 2 Sensor with boxes, semantics and lane maps.

A small data set, meant for trying a pipeline on real frames: it reads the sweeps that the config lists.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.sweep import Boxes, Sweep
from pcdet_freeze.datasets.frames import LABEL_KEYS
from pcdet_freeze.datasets.label_settings import cell_size_faults, lane_map_shape
from pcdet_freeze.datasets.lidar_annos import add_levels, boxes_to_anno, in_range, predicted_annos
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.datasets.timed_reads import timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.ops.lanes import draw_lines
from pcdet_freeze.utils.rules import Count, Length, Name, Rule, whole
from pcdet_freeze.utils.sections import Section
from pcdet_freeze.utils.untrusted_files.inside import inside

GROUND, OTHER = "ground", "other"


def _is_sweep(name: str) -> bool:
    log, _, stamp = name.rpartition("/")
    return bool(log) and stamp.isdigit()


Sweeps = Annotated[
    tuple[Annotated[str, Rule("<log>/<timestamp in ns>", _is_sweep)], ...],
    Rule("a list of <log>/<timestamp in ns>, one or more", bool),
]


def _is_class_map(given: Mapping[str, Sequence[str]]) -> bool:
    return bool(given) and not {GROUND, OTHER} & set(given)


ClassMap = Annotated[
    dict[str, tuple[Name, ...]],
    Rule(
        f"a section of names and lists of Argoverse's categories, without {GROUND} and {OTHER}",
        _is_class_map,
        advice="CLASS_MAP: {Car: [REGULAR_VEHICLE]}",
    ),
]


@dataclass(frozen=True)
class BoundarySettings(Section):
    """``LANE``: how lane boundaries are drawn into lane maps."""

    cell_size: Length
    """metres"""
    width: Length = 0.3
    """metres that a line is wide"""
    painted_only: bool = True
    """leave out boundaries without a mark"""


@dataclass(frozen=True, kw_only=True)
class SweepSettings(DataSettings):
    """DATA_CONFIG of Argoverse2Sweeps; DATA_PATH holds a folder a log."""

    sweeps: Modes[Sweeps]
    class_map: ClassMap
    """Argoverse's categories by the name that they get here; others keep their own"""
    lane: BoundarySettings
    min_points: Annotated[int, whole(0)] = 5
    """boxes with fewer points get no training box, and do not count in the evaluation"""
    repeat: Count = 1
    """how often a training epoch goes through the sweeps"""

    def faults(self) -> Iterator[str]:
        """Cells that do not fit the range."""
        return cell_size_faults(self.lane.cell_size, self.point_cloud_range)


@DATASETS.register
class Argoverse2Sweeps(DatasetTemplate):
    """Sweeps as ``SWEEPS`` lists them for train and test.

    Semantic classes: ground (by the flow labels), each name of CLASS_MAP (points in its boxes), other. Only
    the first sweep of a log has flow labels: others are labelled in part. Frame: the vehicle's, x forward,
    y left, z up, origin at the rear axle, so the ground is near z = -0.3.
    """

    Settings = SweepSettings
    labels = LABEL_KEYS

    def __init__(
        self,
        dataset_cfg: Config,
        class_names: Sequence[str],
        training: bool = True,
        root_path: str | Path | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        settings = self.read_settings(dataset_cfg)
        self.class_map = {
            category: name for name, categories in settings.class_map.items() for category in categories
        }
        self.semantic_class_names, self.lane_map_shape = self.label_forms(dataset_cfg)
        super().__init__(dataset_cfg, class_names, training, root_path, logger)
        self.lane_width = settings.lane.width
        self.painted_only = settings.lane.painted_only
        self._grid = lane_map_shape(settings.lane.cell_size, self.point_cloud_range)
        self.min_points = settings.min_points
        self.sweeps = self._sweeps(settings.sweeps.of(training))
        self.repeat = settings.repeat if training else 1
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
