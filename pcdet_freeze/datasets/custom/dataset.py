"""CustomDataset: a folder of one's own, with boxes, point labels and lane maps as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcdet_freeze.datasets.checks import check_frames, raise_or_warn
from pcdet_freeze.datasets.custom.boxes import AGAIN, boxes_of
from pcdet_freeze.datasets.custom.frames import CustomFrames
from pcdet_freeze.datasets.custom.settings import CustomSettings
from pcdet_freeze.datasets.file_formats.info_files import read_infos
from pcdet_freeze.datasets.kitti.check_info import frame_id, has_boxes
from pcdet_freeze.datasets.labels.label_settings import forms_of
from pcdet_freeze.datasets.labels.lidar_annos import LidarAnnos, add_levels, boxes_to_anno, in_range
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import DataError


@DATASETS.register
class CustomDataset(LidarAnnos, DatasetTemplate):
    """Frames of the infos that INFO_PATH names for this mode (``prepare custom`` writes them).

    Frame: LiDAR, x forward, y left, z up. Frames without a label file are partially labelled.
    """

    Settings = CustomSettings

    def open_files(self, settings: CustomSettings) -> None:
        self.min_points = settings.min_points
        self.frames = CustomFrames.of(self.root_path, settings)
        self.frames.check_folders()
        split, self._info_names = settings.data_split.of(self.training), settings.info_path.of(self.training)
        self.infos = read_infos([self.info_root / name for name in self._info_names], split)
        self.logger.info("Custom %s: %d frames in %s", split, len(self.infos), self.root_path)
        self.labels = self._find_labels(split)
        limits, strict = self.point_cloud_range.tolist(), settings.on_implausible == "raise"
        findings = check_frames(self._raw_points, len(self), len(self.frames.columns.wanted), limits)
        raise_or_warn(findings, str(self.root_path / "points"), self.logger, strict)

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """SEMANTIC.CLASSES and the grid of LANE, if they are set."""
        return LabelForms(*forms_of(cls.read_settings(dataset_cfg)))

    def _find_labels(self, split: str) -> tuple[str, ...]:
        """Labels that the frames have; DataError where a wanted label is nowhere in the training."""
        found = {"gt_boxes": sum(map(has_boxes, self.infos))}
        found |= self.frames.labels.count(filter(None, map(frame_id, self.infos)))
        for key, number in found.items():
            self.logger.info("Custom %s: %d of %d frames have %s", split, number, len(self), key)
            if not number and self.training and key != "gt_boxes":
                raise DataError(
                    f"DATA_CONFIG asks for {key}, but none of the {len(self)} frames of the split {split!r} "
                    f"has it in {self.root_path}: docs/your_data.md describes the files. Otherwise set "
                    "SEMANTIC or LANE to null"
                )
        return tuple(key for key, number in found.items() if number)

    def _raw_points(self, index: int) -> bytes | None:
        """Float32 rows of a frame's points for ``checks``; None where its own error says what is wrong."""
        try:
            path = self.frames.points_path(self.frame_name(index))
            if path.suffix == ".bin" and self.frames.scale == 1.0 and not self.frames.columns.stored:
                return timed(path, path.read_bytes)
            return self.frames.rows(self.frame_name(index)).astype("<f4").tobytes()
        except (OSError, DataError):
            return None

    def __len__(self) -> int:
        return len(self.infos)

    def frame_name(self, index: int) -> str:
        return frame_id(self.infos[index]) or f"entry {index} of {' and '.join(self._info_names)}"

    def load_sample(self, index: int) -> Sample:
        """points (N, C); boxes with at least MIN_POINTS points, point_labels, lane_map where there are."""
        info, frame = self._info(index)
        sample = self.frames.sample(frame)
        if "annos" in info:
            boxes, names, counts = self._boxes(info, frame)
            enough = counts >= self.min_points
            sample["gt_boxes"], sample["gt_names"] = boxes[enough], names[enough]
        return sample

    def _info(self, index: int) -> tuple[Mapping[str, Any], str]:
        info = self.infos[index]
        if frame_id(info) is None:
            raise DataError(
                f"{self.frame_name(index)}: an entry of an info file is a dict with point_cloud.lidar_idx; "
                f"got {type(info).__name__}; {AGAIN}"
            )
        return info, self.frame_name(index)

    def _boxes(self, info: Mapping[str, Any], frame: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes, names, and points a box, which OpenPCDet's infos do not count."""
        boxes, names, counts = boxes_of(info["annos"], frame)
        if counts is None and self.min_points:
            raise DataError(
                f"frame {frame}: MIN_POINTS {self.min_points} needs infos with num_points_in_gt, which those "
                f"of OpenPCDet do not have; {AGAIN}"
            )
        return boxes, names, np.zeros(len(names), np.int64) if counts is None else counts

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all frames (see ``lidar_annos``); all that counts is 'easy'."""
        annos: list[dict[str, Any] | None] = []
        for index in range(len(self)):
            info, frame = self._info(index)
            if "annos" not in info:
                annos.append(None)
                continue
            boxes, names, points = self._boxes(info, frame)
            counts = (points >= self.min_points) & in_range(boxes, self.point_cloud_range)
            anno = boxes_to_anno(boxes, names, frame)
            annos.append(add_levels(anno, np.where(counts, 0, 3), points))
        return annos
