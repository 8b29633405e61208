"""SyntheticDataset: simulated LiDAR street scenes with boxes, point labels and lane maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.frames import LABEL_KEYS
from pcdet_freeze.datasets.labels.lidar_annos import Anno, LidarAnnos, add_levels, boxes_to_anno, in_range
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.synthetic.cache import FrameCache
from pcdet_freeze.datasets.synthetic.labels import CLASSES, occlusion_level
from pcdet_freeze.datasets.synthetic.render import Frame, render
from pcdet_freeze.datasets.synthetic.scene import draw_scene
from pcdet_freeze.datasets.synthetic.settings import SyntheticSettings, read_settings
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import DataError

MAX_ATTEMPTS = 16


@DATASETS.register
class SyntheticDataset(LidarAnnos, DatasetTemplate):
    """Scenes that are a pure function of (seed, index) and the settings; no data files are needed.

    Its keys are those of :class:`SyntheticSettings`.

    A sample has points (x, y, z, intensity; LiDAR frame with the sensor at the origin, ground near
    z = -HEIGHT), gt_boxes, gt_names, point_labels (``labels.CLASSES``) and lane_map.
    """

    Settings = SyntheticSettings
    labels = LABEL_KEYS
    semantic_class_names = CLASSES

    def open_files(self, settings: Any) -> None:
        self.settings = read_settings(self.dataset_cfg, self.training)
        self._cache = FrameCache(self.settings, self.render, self.logger)

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """CLASSES, and the grid of LANE."""
        return LabelForms(CLASSES, read_settings(dataset_cfg, training=False).grid.shape)

    def __len__(self) -> int:
        return self.settings.num_scenes

    def frame_name(self, index: int) -> str:
        """Seed and index, for example "7_000012"."""
        return f"{self.settings.seed}_{index:06d}"

    def render(self, index: int) -> Frame:
        """Draw and ray-cast scene ``index``; layouts with too few visible cars are drawn again.

        Raises:
            DataError: no layout has MIN_CARS visible cars (a range that is too small, too few beams).
        """
        settings = self.settings
        for attempt in range(MAX_ATTEMPTS):
            scene = draw_scene(
                settings.seed,
                index,
                sensor_height=settings.sensor.height,
                reach=settings.reach,
                attempt=attempt,
            )
            frame = render(
                scene, settings.sensor, settings.range, settings.grid, settings.lane_width, attempt
            )
            if self.visible_cars(frame) >= settings.min_cars:
                return frame
        raise DataError(
            f"synthetic scene {self.frame_name(index)}: MIN_CARS requires {settings.min_cars} cars with "
            f"{settings.min_points} points in POINT_CLOUD_RANGE, but {MAX_ATTEMPTS} layouts have fewer. "
            "Lower MIN_CARS, or use a sensor with more beams or a larger range."
        )

    def visible_cars(self, frame: Frame) -> int:
        """Number of cars with at least MIN_POINTS points whose centre is in range."""
        seen = (frame.names == "Car") & (frame.num_points >= self.settings.min_points)
        return int((seen & in_range(frame.boxes, self.settings.range)).sum())

    def frame(self, index: int) -> Frame:
        """Frame ``index`` with all annotations, including owners, occlusion and lane polylines."""
        return self._cache.get(index)

    def load_sample(self, index: int) -> Sample:
        """Raw sample ``index``; gt_boxes are the objects with at least MIN_POINTS points in range."""
        frame = self.frame(index)
        labelled = frame.num_points >= self.settings.min_points
        return {
            "points": frame.points.copy(),
            "frame_id": self.frame_name(index),
            "gt_boxes": frame.boxes[labelled].astype(np.float32),
            "gt_names": frame.names[labelled],
            "point_labels": frame.labels.astype(np.int64),
            "lane_map": frame.lane_map.copy(),
        }

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all scenes (see ``lidar_annos``)."""
        settings = self.settings
        return [
            ground_truth_anno(self.frame(index), self.frame_name(index), settings.range, settings.min_points)
            for index in range(len(self))
        ]


def ground_truth_anno(frame: Frame, frame_id: str, limits: NDArray[np.float32], min_points: int) -> Anno:
    """The objects of a frame as a KITTI annotation dict; ``occluded`` as in :func:`occlusion_level`.

    Objects whose centre is outside ``limits`` in x or y also get level 3, which the metric ignores.
    """
    anno = boxes_to_anno(frame.boxes, frame.names, frame_id)
    counted = in_range(frame.boxes, limits)
    levels = [
        occlusion_level(occlusion, number, min_points) if inside else 3
        for occlusion, number, inside in zip(frame.occlusion, frame.num_points, counted, strict=True)
    ]
    return add_levels(anno, levels, frame.num_points)
