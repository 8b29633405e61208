"""Argoverse2Dataset: the logs of Argoverse 2 Sensor, several sweeps a frame."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.base import SweepFrames
from pcdet_freeze.datasets.argoverse2.dataset import category_names
from pcdet_freeze.datasets.argoverse2.ground import read_heights
from pcdet_freeze.datasets.argoverse2.settings import GROUND, OTHER, LogSettings
from pcdet_freeze.datasets.argoverse2.sweep import Sweep
from pcdet_freeze.datasets.frames import IGNORE
from pcdet_freeze.datasets.labels.label_settings import lane_map_shape
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.template import LabelForms
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside


@DATASETS.register
class Argoverse2Dataset(SweepFrames):
    """Sweeps of all logs in the folder of a split; every INTERVAL-th one is a frame.

    Points have the age of their sweep as fifth column. Semantic classes: ground (by the height map of the
    log), each name of CLASS_MAP (points in its boxes), other; points of older sweeps have none. The logs of
    the test split have no boxes and no point labels. Frame: see :class:`SweepFrames`.
    """

    Settings = LogSettings

    def open_files(self, settings: LogSettings) -> None:
        self.class_map = category_names(settings.class_map)
        self.boundaries, self.min_points = settings.lane, settings.min_points
        split = inside(self.root_path, settings.data_split.of(self.training), "a folder of DATA_SPLIT")
        self.sweeps, self.older = self._find_sweeps(split, settings.interval.of(self.training))
        self.labels = self._find_labels()

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """Ground, the names of CLASS_MAP and everything else, with POINT_LABELS; the grid of LANE."""
        settings: LogSettings = cls.read_settings(dataset_cfg)
        names = (GROUND, *settings.class_map, OTHER) if settings.point_labels else ()
        lane = settings.lane
        shape = lane_map_shape(lane.cell_size, settings.point_cloud_range) if lane is not None else None
        return LabelForms(names, shape)

    def _find_sweeps(self, split: Path, interval: int) -> tuple[list[Sweep], list[list[Sweep]]]:
        """The frames, and the sweeps before each of them, from new to old."""
        frames: list[Sweep] = []
        older: list[list[Sweep]] = []
        logs = timed(split, lambda: sorted(path for path in split.glob("*") if path.is_dir()))
        for log in logs:
            sweeps = [Sweep(log, stamp) for stamp in timed(log, partial(stamps_of, log))]
            for number in range(0, len(sweeps), interval):
                first = max(0, number - self.settings.max_sweeps + 1)
                frames.append(sweeps[number])
                older.append(sweeps[first:number][::-1])
        if not frames:
            raise DataError(
                f"{split} has no log with sensors/lidar/<timestamp>.feather. DATA_PATH must hold the "
                "folders of DATA_SPLIT, and these one folder per log"
            )
        self.logger.info("Argoverse 2 %s: %d frames of %d logs", split.name, len(frames), len(logs))
        return frames, older

    def _find_labels(self) -> tuple[str, ...]:
        """Labels that the frames have; DataError where a training has no boxes."""
        logs = {sweep.log: sweep for sweep in self.sweeps}
        labelled = [sweep for sweep in logs.values() if sweep.has_boxes()]
        if self.training and not labelled:
            raise DataError(f"none of the {len(logs)} logs of the training has an annotations.feather")
        found = ("gt_boxes", "point_labels") if self.settings.point_labels else ("gt_boxes",)
        lanes = ("lane_map",) if self.boundaries is not None else ()
        return (*(found if labelled else ()), *lanes)

    def __len__(self) -> int:
        return len(self.sweeps)

    def frame_name(self, index: int) -> str:
        return self.sweeps[index].name

    def load_sample(self, index: int) -> Sample:
        """points (N, 5), boxes with at least MIN_POINTS points; point_labels and lane_map as configured."""
        sweep = self.sweeps[index]
        newest = sweep.points()
        sample: Sample = {"points": self._with_older(newest, index), "frame_id": sweep.name}
        if sweep.has_boxes():
            found = sweep.boxes()
            enough = found.num_points >= self.min_points
            sample["gt_boxes"], sample["gt_names"] = found.boxes[enough], self.names(found)[enough]
            if self.settings.point_labels:
                labels = self.classes_of(newest, found, self.ground(sweep, newest))
                sample["point_labels"] = np.pad(
                    labels, (0, len(sample["points"]) - len(newest)), constant_values=IGNORE
                )
        if self.boundaries is not None:
            sample["lane_map"] = self.lane_map(sweep)
        return sample

    def _with_older(self, newest: np.ndarray, index: int) -> np.ndarray:
        """(N, 5) the points of a sweep, then those before it in its frame, with their age in seconds."""
        sweep = self.sweeps[index]
        parts = [np.pad(newest, ((0, 0), (0, 1)))]
        for other in self.older[index]:
            points = np.pad(other.points(), ((0, 0), (0, 1)))
            city = other.city_from_ego().to_outer(points[:, :3])
            points[:, :3] = sweep.city_from_ego().to_inner(city)
            points[:, 4] = 1e-9 * (sweep.timestamp - other.timestamp)
            parts.append(points)
        return np.concatenate(parts)

    def ground(self, sweep: Sweep, points: np.ndarray) -> np.ndarray:
        """(N,) bool, which points of a sweep are ground by the height map of its log."""
        return read_heights(sweep.log / "map").is_ground(sweep.city_from_ego().to_outer(points[:, :3]))

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all frames (see ``lidar_annos``); all that counts is 'easy'."""
        return [self.anno(sweep) if sweep.has_boxes() else None for sweep in self.sweeps]


def stamps_of(log: Path) -> list[int]:
    """Timestamps in ns of the sweeps of a log, from old to new."""
    stems = [path.stem for path in (log / "sensors" / "lidar").glob("*.feather")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal())
