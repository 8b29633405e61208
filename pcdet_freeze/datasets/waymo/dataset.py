"""WaymoDataset: frames of the segments that OpenPCDet's preparation wrote, with its config keys."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.labels.lidar_annos import LidarAnnos, add_levels, boxes_to_anno, in_range
from pcdet_freeze.datasets.packed import Rows, frame_of, read_infos
from pcdet_freeze.datasets.registry import DATASETS, Sample
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.datasets.waymo.segments import (
    Info,
    boxes_of,
    info_path,
    points_path,
    read_points,
    segment_names,
)
from pcdet_freeze.datasets.waymo.settings import WaymoSettings
from pcdet_freeze.errors import DataError


@DATASETS.register
class WaymoDataset(LidarAnnos, DatasetTemplate):
    """Every SAMPLED_INTERVAL-th frame of the segments that ``ImageSets/<split>.txt`` lists.

    Frame: the vehicle's, x forward, y left, z up, the road is near z = 0. Points: x, y, z, intensity (its
    tanh), elongation. Boxes: Vehicle, Pedestrian, Cyclist, Sign. There are no labels of points or lanes.
    """

    Settings = WaymoSettings

    def open_files(self, settings: WaymoSettings) -> None:
        self.folder = self.root_path / self.settings.processed_data_tag
        self.split = self.settings.data_split.of(self.training)
        self.infos = self._read_infos()

    def _read_infos(self) -> Rows:
        paths = find_infos(self.root_path, self.folder, self.split, self.logger)
        target = self.info_root / f"{self.folder.name}_infos_{self.split}.packed"
        infos = read_infos(paths, self.logger, target=target)
        chosen = infos[:: self.settings.sampled_interval.of(self.training)]
        self.logger.info("Waymo %s: %d of %d frames", self.split, len(chosen), len(infos))
        return chosen

    def __len__(self) -> int:
        return len(self.infos)

    def frame_name(self, index: int) -> str:
        return frame_of(self.infos.get(index), index)

    def raw_points(self, info: Info) -> np.ndarray:
        """Points (N, 5) of a frame."""
        settings = self.settings
        path = points_path(self.folder, info)
        return read_points(path, settings.disable_nlz_flag_on_points, settings.points_tanh_dim)

    def load_sample(self, index: int) -> Sample:
        """points (N, 5); gt_boxes (G, 7), or (G, 9) with TRAIN_WITH_SPEED, and gt_names."""
        info = self.infos[index]
        frame = frame_of(info, index)
        sample: Sample = {"points": self.raw_points(info), "frame_id": frame}
        labels = boxes_of(info, frame)
        if labels is not None:
            columns = 9 if self.settings.train_with_speed else 7
            boxes = labels["boxes"][:, :columns].astype(np.float32)
            if boxes.shape[1] < columns:
                raise DataError(
                    f"frame {frame}: TRAIN_WITH_SPEED needs boxes of nine columns; got {boxes.shape[1]}. "
                    "Prepare the segments with a newer OpenPCDet"
                )
            kept = np.ones(len(boxes), bool)
            if self.training and self.settings.filter_empty_boxes_for_train:
                kept = labels["num_points"] > 0
            sample["gt_boxes"], sample["gt_names"] = boxes[kept], labels["name"][kept]
        return sample

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all frames (see ``lidar_annos``); boxes without a point do not count."""
        return [self._anno(info, index) for index, info in enumerate(self.infos)]

    def _anno(self, info: Info, index: int) -> dict[str, Any] | None:
        frame = frame_of(info, index)
        labels = boxes_of(info, frame)
        if labels is None:
            return None
        boxes = labels["boxes"][:, :7]
        counts = (labels["num_points"] > 0) & in_range(boxes, self.point_cloud_range)
        anno = add_levels(
            boxes_to_anno(boxes, labels["name"], frame), np.where(counts, 0, 3), labels["num_points"]
        )
        anno["difficulty"] = labels["difficulty"]
        return anno


def find_infos(root: Path, folder: Path, split: str, log: logging.Logger) -> list[Path]:
    """Info files of the segments of a split; segments that are not there are logged.

    Raises DataError where none is.
    """
    names = segment_names(root, split, folder.name)
    paths = [path for name in names if (path := info_path(folder, name)) is not None]
    if not paths:
        raise DataError(
            f"none of the {len(names)} segments of ImageSets/{split}.txt is in {folder.absolute()}. "
            "Convert the raw files with OpenPCDet's create_waymo_infos; set DATA_CONFIG.DATA_PATH to the "
            "folder of its output, and DATA_CONFIG.PROCESSED_DATA_TAG to the folder of the segments in it"
        )
    if len(paths) < len(names):
        log.warning(
            "Waymo %s: %d of %d segments are not in %s", split, len(names) - len(paths), len(names), folder
        )
    return paths
