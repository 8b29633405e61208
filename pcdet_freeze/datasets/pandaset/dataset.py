"""PandaSetDataset: sweeps of PandaSet with boxes, point classes and lane maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.labels.label_files import to_classes
from pcdet_freeze.datasets.labels.label_settings import forms_of
from pcdet_freeze.datasets.labels.lidar_annos import LidarAnnos, add_levels, boxes_to_anno, in_range
from pcdet_freeze.datasets.pandaset.lanes import drawn_first, lane_lines
from pcdet_freeze.datasets.pandaset.settings import PandaSetSettings, is_number
from pcdet_freeze.datasets.pandaset.sweep import LANE_MARKING, Cloud, Cuboids, Sweep
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.lanes import draw_lines
from pcdet_freeze.utils.untrusted_files.inside import inside

KEPT = 8
"""sweeps that stay in memory where there are no more"""
FOLDERS = {
    "gt_boxes": "annotations/cuboids",
    "point_labels": "annotations/semseg",
    "lane_map": "annotations/semseg",
}
"""label -> the folder of a scene that it is read from"""


@DATASETS.register
class PandaSetDataset(LidarAnnos, DatasetTemplate):
    """Sweeps as ``SWEEPS`` lists them for train and test.

    Frame: the vehicle's, x forward, y left, z up; the road is near z = -0.3. Points, boxes and point labels
    are those of SENSORS. Lane lines are drawn from the points of both sensors, since paint does not move.
    Scenes without point labels are partially labelled: their frames have neither point_labels nor lane_map.
    """

    Settings = PandaSetSettings

    def open_files(self, settings: PandaSetSettings) -> None:
        self.semantic, self.lane, self.sensors = settings.semantic, settings.lane, settings.sensors
        self.class_map = {
            label: name for name, labels in (settings.class_map or {}).items() for label in labels
        }
        self.min_points = settings.min_points
        self.sweeps = find_sweeps(self.root_path, settings.sweeps.of(self.training))
        self.repeat = settings.repeat if self.training else 1
        self.labels = self._find_labels()
        self._read: dict[int, Sample] = {}

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """SEMANTIC.CLASSES and the grid of LANE, if they are set."""
        return LabelForms(*forms_of(cls.read_settings(dataset_cfg)))

    def _find_labels(self) -> tuple[str, ...]:
        """Labels that the frames have; DataError where a wanted label is nowhere in the training."""
        unwanted = {"point_labels"} if self.semantic is None else set()
        unwanted |= {"lane_map"} if self.lane is None else set()
        wanted = [key for key in FOLDERS if key not in unwanted]
        found = {key: sum(s.has(FOLDERS[key]) for s in self.sweeps) for key in wanted}
        for key, number in found.items():
            self.logger.info("PandaSet %s: %d of %d sweeps have %s", self.mode, number, len(self.sweeps), key)
            if not number and self.training:
                raise DataError(
                    f"DATA_CONFIG asks for {key}, but none of the {len(self.sweeps)} training sweeps has "
                    f"{FOLDERS[key]} in {self.root_path}. Set SEMANTIC and LANE to null, or list other sweeps"
                )
        return tuple(key for key, number in found.items() if number)

    def labelled(self, key: str) -> np.ndarray:
        """(len,) bool: the frames of sweeps with the files of the label ``key``."""
        has = [key in self.labels and sweep.has(FOLDERS[key]) for sweep in self.sweeps]
        return np.tile(np.array(has, bool), self.repeat)

    def __len__(self) -> int:
        return len(self.sweeps) * self.repeat

    def frame_name(self, index: int) -> str:
        return self.sweeps[index % len(self.sweeps)].name

    def load_sample(self, index: int) -> Sample:
        """points (N, 4) of SENSORS, boxes with at least MIN_POINTS points; other labels where there are."""
        number = index % len(self.sweeps)
        if number in self._read:
            sample = self._read[number]
        else:
            sample = self._load(self.sweeps[number])
            if len(self.sweeps) <= KEPT:
                self._read[number] = sample
        return {
            key: value.copy() if isinstance(value, np.ndarray) else value for key, value in sample.items()
        }

    def _load(self, sweep: Sweep) -> Sample:
        cloud = sweep.cloud()
        mine = np.isin(cloud.sensors, self.sensors)
        sample: Sample = {"points": cloud.points[mine], "frame_id": sweep.name}
        found = sweep.cuboids(cloud, self.sensors)
        if found is not None:
            enough = found.num_points >= self.min_points
            sample["gt_boxes"] = found.boxes[enough]
            sample["gt_names"] = self.names(found)[enough]
        classes = sweep.classes(len(cloud.points))
        if classes is not None and self.semantic is not None:
            path = sweep.path("annotations/semseg")
            sample["point_labels"] = to_classes(classes[mine], self.semantic, path)
        if classes is not None and self.lane is not None and self.lane_map_shape is not None:
            lines = self._lines(cloud, classes)
            limits = self.point_cloud_range
            sample["lane_map"] = draw_lines(lines, limits, self.lane_map_shape, self.lane.width)
        return sample

    def lane_lines(self, index: int) -> list[np.ndarray] | None:
        """The lines of ``lane_map`` as polylines (n, 2) x, y in metres, from left to right.

        None for a sweep without point labels, and where LANE is null.
        """
        sweep = self.sweeps[index % len(self.sweeps)]
        cloud = sweep.cloud()
        classes = sweep.classes(len(cloud.points))
        return None if classes is None or self.lane is None else self._lines(cloud, classes)

    def _lines(self, cloud: Cloud, classes: np.ndarray) -> list[np.ndarray]:
        assert self.lane is not None
        limits = self.point_cloud_range
        here = cloud.points[classes == LANE_MARKING, :3]
        here = here[((here[:, :2] >= limits[:2]) & (here[:, :2] < limits[3:5])).all(axis=1)]
        lines = lane_lines(here, self.lane.cell_size, self.lane.max_gap, self.lane.min_length)
        return drawn_first(lines, self.lane.max_lines)

    def names(self, found: Cuboids) -> np.ndarray:
        """(K,) names of cuboids by CLASS_MAP."""
        return np.array([self.class_map.get(label, label) for label in found.categories], dtype=str)

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all sweeps (see ``lidar_annos``); all that counts is 'easy'."""
        return [self._anno(sweep) for sweep in self.sweeps]

    def _anno(self, sweep: Sweep) -> dict[str, Any] | None:
        found = sweep.cuboids(sweep.cloud(), self.sensors)
        if found is None:
            return None
        counts = (found.num_points >= self.min_points) & in_range(found.boxes, self.point_cloud_range)
        anno = boxes_to_anno(found.boxes, self.names(found), sweep.name)
        return add_levels(anno, np.where(counts, 0, 3), found.num_points)


def find_sweeps(root: Path, entries: Sequence[str]) -> list[Sweep]:
    """The sweeps that ``entries`` (a scene, or scene/number) name below ``root``.

    Raises DataError where one is missing.
    """
    found: list[Sweep] = []
    for entry in entries:
        scene, _, number = entry.partition("/")
        folder = inside(root, scene, "a scene of SWEEPS")
        if number:
            found.append(Sweep(folder, int(number)))
        else:
            numbers = timed(folder, partial(_numbers_in, folder / "lidar"))
            found += [Sweep(folder, number) for number in numbers] or [Sweep(folder, 0)]
    missing = [str(sweep.path("lidar")) for sweep in found if not sweep.has("lidar")]
    if missing:
        raise DataError(
            f"DATA_CONFIG.SWEEPS names sweeps that are not there: {', '.join(missing[:5])}. DATA_PATH is "
            f"{root.absolute()}; it must hold one folder per scene"
        )
    return list(dict.fromkeys(found))


def _numbers_in(folder: Path) -> list[int]:
    stems = [file.name.partition(".")[0] for file in folder.glob("*.pkl.gz")]
    return sorted(int(stem) for stem in stems if is_number(stem))
