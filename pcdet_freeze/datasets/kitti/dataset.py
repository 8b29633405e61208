"""KITTI 3D object detection in OpenPCDet's layout and with its config keys."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pcdet_freeze.datasets.augmentor.database_sampler import DatabaseSampler
from pcdet_freeze.datasets.checks import Finding, check_frames, raise_or_warn
from pcdet_freeze.datasets.frames import keep_points
from pcdet_freeze.datasets.kitti.boxes import camera_to_lidar, image_boxes, lidar_to_camera
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.kitti.check_info import (
    KITTI_INFOS,
    calibration_of,
    camera_boxes,
    frame_id,
    has_boxes,
)
from pcdet_freeze.datasets.kitti.frame_files import NUM_FEATURES, FrameFiles
from pcdet_freeze.datasets.kitti.labels import DONT_CARE, label_line
from pcdet_freeze.datasets.kitti.prepare import data_root
from pcdet_freeze.datasets.labels.label_files import LabelFiles
from pcdet_freeze.datasets.labels.label_settings import (
    LaneFiles,
    LaneSettings,
    SemanticSettings,
    cell_size_faults,
    lane_map_shape,
)
from pcdet_freeze.datasets.labels.lidar_annos import azimuth_boxes
from pcdet_freeze.datasets.packed import Rows, read_infos
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.settings.rules import Name, Rule
from pcdet_freeze.utils.untrusted_files.inside import inside

ITEMS = ("points", "point_labels", "lane_map")


@dataclass(frozen=True, kw_only=True)
class KittiSettings(DataSettings):
    """DATA_CONFIG of KittiDataset; DATA_PATH holds training/, testing/, ImageSets/."""

    data_split: Modes[Name]
    info_path: Modes[tuple[Name, ...]]
    get_item_list: Annotated[
        tuple[
            Annotated[str, Rule(f"one of {', '.join(ITEMS)}; no others yet", ITEMS.__contains__)],
            ...,
        ],
        Rule("a list with points in it", lambda items: "points" in items),
    ] = ("points",)
    """point_labels and lane_map: labels that lie beside the frames (see ``label_files``)"""
    semantic: SemanticSettings | None = None
    lane: LaneFiles | None = None
    fov_points_only: bool = False
    """keep only points that the camera sees"""

    def faults(self) -> Iterator[str]:
        """Labels without their settings."""
        for item, key in (("point_labels", "SEMANTIC"), ("lane_map", "LANE")):
            if item in self.get_item_list and getattr(self, key.lower()) is None:
                yield f"{key} is required with {item} in GET_ITEM_LIST, but missing"
        if self.lane is not None:
            yield from cell_size_faults(self.lane.cell_size, self.point_cloud_range)


@DATASETS.register
class KittiDataset(DatasetTemplate):
    """Frames of the infos that INFO_PATH names for this mode."""

    Settings = KittiSettings

    def open_files(self, settings: Any) -> None:
        semantic = settings.semantic if "point_labels" in settings.get_item_list else None
        lanes = None
        if self.lane_map_shape is not None:
            lanes = LaneSettings(self.lane_map_shape, settings.lane.folder)
        self.split = settings.data_split.of(self.training)
        self._info_names = settings.info_path.of(self.training)
        self.files = FrameFiles(self.root_path / ("testing" if self.split == "test" else "training"))
        self.own_labels = LabelFiles(self.files.folder, semantic, lanes)
        self.fov_points_only = settings.fov_points_only
        self.infos = self._read_infos()
        self.labels = self._find_labels()
        self._note_missing_planes()
        limits, strict = self.point_cloud_range.tolist(), settings.on_implausible == "raise"
        findings = check_frames(self._raw_points, len(self), NUM_FEATURES, limits)
        raise_or_warn([*findings, *self._label_findings()], str(self.files.folder), self.logger, strict)

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """SEMANTIC.CLASSES and the grid of LANE, where GET_ITEM_LIST asks for these labels."""
        settings = cls.read_settings(dataset_cfg)
        items, semantic, lane = settings.get_item_list, settings.semantic, settings.lane
        return LabelForms(
            tuple(semantic.classes) if "point_labels" in items else (),
            lane_map_shape(lane.cell_size, settings.point_cloud_range) if "lane_map" in items else None,
        )

    def _raw_points(self, index: int) -> bytes | None:
        """Bytes of the point file of a frame; None where it cannot be read, which its own error says."""
        try:
            path = self.files.points_path(self.frame_name(index))
            return timed(path, path.read_bytes) if timed(path, path.is_file) else None
        except (OSError, DataError):
            return None

    def _label_findings(self) -> list[Finding]:
        """Labels with scores: results of a detector."""
        scored, annotated = (int(self.infos.column(name).sum()) for name in ("scored", "annotated"))
        text = f"the labels of {scored} of {annotated} frames have scores, as results of a detector have"
        return [Finding(text)] if scored and self.training else []

    def check_root(self) -> None:
        data_root(self.root_path)

    def _read_infos(self) -> Rows:
        paths = [self.info_root / name for name in self._info_names]
        infos = read_infos(paths, self.logger, KITTI_INFOS)
        if not len(infos):
            raise DataError(
                f"the info files {', '.join(map(str, paths))} list no frame; "
                f"is ImageSets/{self.split}.txt empty?"
            )
        self.logger.info("KITTI %s: %d frames", self.split, len(infos))
        return infos

    def _find_labels(self) -> tuple[str, ...]:
        """What the frames are labelled with; DataError where a wanted label is nowhere in the training."""
        boxes = ("gt_boxes",) if self.infos.column("labelled").any() else ()
        found = self.own_labels.count(filter(None, self.infos.column("frame").tolist()))
        for key, number in found.items():
            self.logger.info("KITTI %s: %d of %d frames have %s", self.split, number, len(self), key)
            if not number and self.training:
                raise DataError(
                    f"DATA_CONFIG.GET_ITEM_LIST asks for {key}, but none of the {len(self)} frames of the "
                    f"split {self.split!r} has it in {self.files.folder}: docs/labels.md describes the files"
                )
        return (*boxes, *(key for key, number in found.items() if number))

    def labelled(self, key: str) -> np.ndarray:
        """(len,) bool: the frames with the label ``key``: annotations of the infos, label files."""
        if key == "gt_boxes":
            return np.array([has_boxes(info) for info in self.infos])
        names = map(frame_id, self.infos)
        counts = [self.own_labels.count([] if name is None else [name]) for name in names]
        return np.array([count.get(key, 0) > 0 for count in counts])

    def _note_missing_planes(self) -> None:
        """Say once, before the workers start, that pasted objects will stay at their own height."""
        steps = self.data_augmentor.steps if self.data_augmentor is not None else []
        if not any(isinstance(step, DatabaseSampler) and step.use_road_plane for step in steps):
            return
        there = self._plane_files()
        frames = self.infos.column("frame").tolist()
        missing = sum(f"{frame}.txt" not in there and not self._has_plane(frame) for frame in frames)
        if missing:
            self.logger.info(
                "no road plane for %d of %d frames in %s: objects that gt_sampling pastes there stay at "
                "their own height",
                missing,
                len(self),
                self.files.folder / "planes",
            )

    def _plane_files(self) -> set[str]:
        folder = self.files.folder / "planes"
        try:
            return set(timed(folder, lambda: os.listdir(folder)))
        except OSError:
            return set()

    def _has_plane(self, frame: str) -> bool:
        """Whether a frame that is not in the folder itself has a plane."""
        try:
            path = self.files.plane_path(frame) if "/" in frame else None
        except DataError:  # a bad frame, which is named when it is read
            path = None
        return path is not None and timed(path, path.is_file)

    def __len__(self) -> int:
        return len(self.infos)

    def frame_name(self, index: int) -> str:
        return frame_id(self.infos.get(index)) or f"entry {index} of {' and '.join(self._info_names)}"

    def load_sample(self, index: int) -> Sample:
        """points (N, 4), frame_id, calib, image_shape (2,) h, w (zeros without an image); labels if given."""
        info = self.infos[index]
        frame = self.frame_name(index)
        calib, shape = calibration_of(info, frame)
        sample: Sample = {
            "points": self.files.points(frame),
            "frame_id": frame,
            "calib": calib,
            "image_shape": shape,
        }
        self.own_labels.add(sample, frame)
        if self.fov_points_only:
            if not shape.any():
                raise DataError(
                    f"frame {frame}: FOV_POINTS_ONLY keeps the points that the camera sees, but the frame "
                    "was prepared without an image. Set FOV_POINTS_ONLY: False, or prepare again with image_2"
                )
            keep_points(sample, calib.in_image(sample["points"], shape))
        if "annos" in info:
            sample["gt_boxes"], sample["gt_names"] = _boxes(info["annos"], calib, frame)
        if self.training and (plane := self.files.road_plane(frame)) is not None:
            sample["road_plane"] = plane
        return sample

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """Copies of the infos' annotations, with frame_id and boxes_lidar (K, 7; zero rows for DontCare).

        The 2D boxes of frames without an image are those of ``lidar_annos``, so that no label is too small.
        """
        annos: list[dict[str, Any] | None] = []
        for index, info in enumerate(self.infos):
            if not has_boxes(info):
                annos.append(None)
                continue
            frame = self.frame_name(index)
            calib, shape = calibration_of(info, frame)
            found, _ = _boxes(info["annos"], calib, frame)
            anno = copy.deepcopy(info["annos"])
            boxes = np.zeros((len(anno["name"]), 7), np.float32)
            boxes[np.asarray(anno["name"]) != DONT_CARE] = found
            anno.update(boxes_lidar=boxes, frame_id=frame)
            if not shape.any():
                anno["bbox"] = azimuth_boxes(boxes)
            annos.append(anno)
        return annos

    def generate_prediction_dicts(
        self,
        batch_dict: dict[str, Any],
        pred_dicts: list[dict[str, Any]],
        class_names: Sequence[str],
        output_path: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions as KITTI annotations (camera boxes, alpha, projected 2D box clipped to the image).

        With ``output_path`` each frame is also written there as a KITTI result file ``<frame_id>.txt``.
        """
        annos = super().generate_prediction_dicts(batch_dict, pred_dicts, class_names)
        for index, anno in enumerate(annos):
            shape = np.asarray([int(edge) for edge in batch_dict["image_shape"][index]])
            _add_camera_boxes(anno, batch_dict["calib"][index], shape)
            if output_path is not None:
                path = inside(Path(output_path), f"{anno['frame_id']}.txt", "the frame's file")
                _write_result(path, anno)
        return annos


def _add_camera_boxes(anno: dict[str, Any], calib: Calibration, image_shape: np.ndarray) -> None:
    location, dimensions, rotation_y, alpha = lidar_to_camera(anno["boxes_lidar"], calib)
    anno.update(
        truncated=np.zeros(len(location)),
        occluded=np.zeros(len(location)),
        alpha=alpha,
        bbox=image_boxes(location, dimensions, rotation_y, calib, image_shape)
        if image_shape.any()
        else azimuth_boxes(anno["boxes_lidar"]),
        dimensions=dimensions,
        location=location,
        rotation_y=rotation_y,
    )


def _write_result(path: Path, anno: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(label_line(anno, i) + "\n" for i in range(len(anno["name"]))))


def _boxes(annos: Any, calib: Calibration, frame: str) -> tuple[np.ndarray, np.ndarray]:
    names, location, dimensions, rotation_y = camera_boxes(annos, frame)
    return camera_to_lidar(location, dimensions, rotation_y, calib), names
