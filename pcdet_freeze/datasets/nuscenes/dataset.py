"""NuScenesDataset: frames of nuScenes' info files with boxes, point classes and lane maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.boundaries import longest_inside
from pcdet_freeze.datasets.frames import IGNORE
from pcdet_freeze.datasets.labels.label_files import to_classes
from pcdet_freeze.datasets.labels.label_settings import forms_of
from pcdet_freeze.datasets.labels.lidar_annos import add_levels, boxes_to_anno, in_range
from pcdet_freeze.datasets.nuscenes import official
from pcdet_freeze.datasets.nuscenes.dividers import Dividers, map_path, read_dividers
from pcdet_freeze.datasets.nuscenes.frame import (
    AGAIN,
    global_pose,
    has_boxes,
    read_boxes,
    read_points,
    token_of,
    turn_boxes,
    turn_points,
)
from pcdet_freeze.datasets.nuscenes.lists import NUSCENES_INFOS, names_of
from pcdet_freeze.datasets.nuscenes.resampling import balanced_frames
from pcdet_freeze.datasets.nuscenes.results import box_rows, write_frame
from pcdet_freeze.datasets.nuscenes.settings import NuScenesSettings
from pcdet_freeze.datasets.packed import Rows, read_infos
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.lanes import draw_lines
from pcdet_freeze.utils.untrusted_files.inside import inside

Info = dict[str, Any]


@DATASETS.register
class NuScenesDataset(DatasetTemplate):
    """Frames of the infos that INFO_PATH names for this mode (ours or OpenPCDet's).

    Frame: the LiDAR's, x right, y forward, z up, as in OpenPCDet; with X_FORWARD x forward, y left. Points
    have the age of their sweep as fifth column; those of older sweeps have no point label. Lane lines are the
    map's dividers. Infos of OpenPCDet have boxes alone.
    """

    Settings = NuScenesSettings

    def check_root(self) -> None:
        self.root_path = find_root(self.root_path, self.settings.version)

    def open_files(self, settings: NuScenesSettings) -> None:
        self.semantic, self.lane = settings.semantic, settings.lane
        self.split = settings.data_split.of(self.training)
        self.infos = self._read_infos(settings.info_path.of(self.training))
        self.labels = self._find_labels()
        self.maps = self._read_maps()
        self.order = np.arange(len(self.infos))
        if self.training and settings.balanced_resampling:
            names = names_of(self.infos, self.class_names)
            self.order = balanced_frames(names, self.class_names, self.logger)
            self.logger.info("nuScenes: %d frames an epoch after balanced resampling", len(self.order))

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """SEMANTIC.CLASSES and the grid of LANE, if they are set."""
        return LabelForms(*forms_of(cls.read_settings(dataset_cfg)))

    def _read_infos(self, names: Sequence[str]) -> Rows:
        paths = [self.info_root / name for name in names]
        for path in paths:
            if not timed(path, path.is_file):
                raise DataError(f"{path}: the info file is missing; {AGAIN}, or set INFO_ROOT to its folder")
        infos = read_infos(paths, self.logger, NUSCENES_INFOS)
        if not len(infos):
            raise DataError(f"{', '.join(names)} in {self.info_root} list no frame; {AGAIN}")
        self.logger.info("nuScenes %s: %d frames", self.split, len(infos))
        return infos

    def _find_labels(self) -> tuple[str, ...]:
        """Labels that the frames have; DataError where a wanted label is nowhere in the training."""
        wanted = {"gt_boxes": "gt_boxes"}
        if self.semantic is not None:
            wanted["point_labels"] = "lidarseg_path"
        if self.lane is not None:
            wanted["lane_map"] = "location"
        found = {key: int(self.infos.column(entry).sum()) for key, entry in wanted.items()}
        for key, number in found.items():
            self.logger.info("nuScenes %s: %d of %d frames have %s", self.split, number, len(self.infos), key)
            if not number and self.training:
                raise DataError(
                    f"DATA_CONFIG asks for {key}, but no info of the training has {wanted[key]}: infos of "
                    f"OpenPCDet have boxes alone. With lidarseg and the map expansion in {self.root_path}, "
                    f"{AGAIN}; or set SEMANTIC and LANE to null"
                )
        return tuple(key for key, number in found.items() if number)

    def _read_maps(self) -> dict[str, Dividers]:
        """The dividers of each location, read here so that the workers share them."""
        if self.lane is None:
            return {}
        found = sorted(set(self.infos.column("map")[self.infos.column("location")].tolist()))
        layers = self.lane.layers
        return {name: read_dividers(map_path(self.root_path, name), layers) for name in found}

    def __len__(self) -> int:
        return len(self.order)

    def info(self, index: int) -> Info:
        """The info of frame ``index``, of which balanced resampling may give several the same."""
        found: Info = self.infos[int(self.order[index])]
        return found

    def frame_name(self, index: int) -> str:
        return token_of(self.infos.get(int(self.order[index]))) or f"entry {index} of the infos"

    def load_sample(self, index: int) -> Sample:
        """points (N, 5), metadata {token}; boxes (K, 9), or (K, 7) without PRED_VELOCITY; other labels."""
        info, settings = self.info(index), self.settings
        points, newest = read_points(self.root_path, info, settings.max_sweeps)
        sample: Sample = {
            "points": turn_points(points) if settings.x_forward else points,
            "frame_id": str(token_of(info)),
            "metadata": {"token": token_of(info)},
        }
        if has_boxes(info):
            boxes, names, counts = self.boxes(info)
            enough = counts >= settings.filter_min_points_in_gt
            sample["gt_boxes"], sample["gt_names"] = boxes[enough], names[enough]
        if self.semantic is not None and "lidarseg_path" in info:
            labels = self._lidarseg(info, newest)
            sample["point_labels"] = np.pad(labels, (0, len(points) - newest), constant_values=IGNORE)
        lines = self._lines(info)
        if lines is not None and self.lane is not None and self.lane_map_shape is not None:
            limits, width = self.point_cloud_range, self.lane.width
            sample["lane_map"] = draw_lines(lines, limits, self.lane_map_shape, width)
        return sample

    def prepare_data(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        """See the template; velocities of pasted objects, too, are zeros where they are not known."""
        sample = super().prepare_data(sample, rng)
        if self.settings.set_nan_velocity_to_zeros and "gt_boxes" in sample:
            sample["gt_boxes"] = np.nan_to_num(sample["gt_boxes"], nan=0.0)
        return sample

    def boxes(self, info: Info) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (K, 9) or (K, 7) in the frame of the points, names (K,), LiDAR points in each (K,)."""
        boxes, names, counts = read_boxes(info)
        if self.settings.x_forward:
            boxes = turn_boxes(boxes)
        if not self.settings.pred_velocity:
            boxes = boxes[:, :7]
        elif self.settings.set_nan_velocity_to_zeros:
            boxes = np.nan_to_num(boxes, nan=0.0)
        return boxes, names, counts

    def _lidarseg(self, info: Info, points: int) -> np.ndarray:
        """(points,) int64 semantic classes of the annotated sweep, 255 for none."""
        assert self.semantic is not None
        path = inside(self.root_path, str(info["lidarseg_path"]), "a file of lidarseg")
        try:
            raw = np.frombuffer(timed(path, path.read_bytes), np.uint8)
        except OSError as error:
            raise DataError(f"{path}: the point labels cannot be read ({error.strerror})") from error
        if len(raw) != points:
            raise DataError(
                f"{path}: lidarseg holds one byte for each of the {points} points of its sweep; got "
                f"{len(raw)}. Is it the file of another sweep?"
            )
        return to_classes(raw.astype(np.int64), self.semantic, path)

    def lane_lines(self, index: int) -> list[np.ndarray] | None:
        """The lines of ``lane_map`` as polylines (n, 2) x, y in metres, from left to right.

        None for a frame whose map is not known, and where LANE is null.
        """
        return self._lines(self.info(index))

    def _lines(self, info: Info) -> list[np.ndarray] | None:
        if self.lane is None or "location" not in info:
            return None
        pose = global_pose(info, self.settings.x_forward)
        lines = self.maps[str(info["location"])].lines(pose, self.point_cloud_range)
        return longest_inside(lines, self.point_cloud_range, self.lane.max_lines)

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all frames (see ``lidar_annos``); all that counts is 'easy'."""
        return [self._anno(self.info(index)) for index in range(len(self))]

    def _anno(self, info: Info) -> dict[str, Any] | None:
        if not has_boxes(info):
            return None
        boxes, names, counts = self.boxes(info)
        least = max(1, self.settings.filter_min_points_in_gt)
        counted = (counts >= least) & in_range(boxes, self.point_cloud_range)
        anno = boxes_to_anno(boxes[:, :7], names, str(token_of(info)))
        return add_levels(anno, np.where(counted, 0, 3), counts)

    def generate_prediction_dicts(
        self,
        batch_dict: dict[str, Any],
        pred_dicts: list[dict[str, Any]],
        class_names: Sequence[str],
        output_path: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions as annotations with ``boxes_lidar`` (K, 7 or 9) and ``metadata``.

        With ``output_path`` each frame is written there as ``<token>.json``, in the global frame, as
        nuScenes' results have it (see ``results.write_submission``).
        """
        annos = super().generate_prediction_dicts(batch_dict, pred_dicts, class_names)
        for anno, metadata in zip(annos, batch_dict["metadata"], strict=True):
            anno.update(boxes_to_anno(anno["boxes_lidar"], anno["name"], anno["frame_id"]), metadata=metadata)
            if output_path is not None:
                write_frame(Path(output_path), self.result_rows(anno))
        return annos

    def result_rows(self, anno: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        """(token, boxes) of predictions, as nuScenes' result files have them."""
        token = anno["metadata"]["token"]
        info = self.infos[self._by_token[token]]
        return token, box_rows(anno, token, global_pose(info, self.settings.x_forward))

    @cached_property
    def _by_token(self) -> dict[str, int]:
        """Token of a frame -> its place in ``infos``."""
        return {token: place for place, token in enumerate(self.infos.column("token").tolist())}

    def check_evaluation(self) -> None:
        """Raise ConfigError if the devkit is missing, or CLASS_NAMES has a class that it does not know."""
        if self.settings.official_evaluation:
            official.check(self.class_names)

    def official_scores(self, annos: Sequence[dict[str, Any]]) -> tuple[str, dict[str, float]] | None:
        """The devkit's scores of predictions of all frames; None with OFFICIAL_EVALUATION: false."""
        if not self.settings.official_evaluation or "gt_boxes" not in self.labels:
            return None
        rows = dict(self.result_rows(anno) for anno in annos)
        return official.scores(self.root_path, self.settings.version, rows)


def find_root(given: Path, version: str) -> Path:
    """The folder that holds ``samples/``: DATA_PATH/VERSION, as OpenPCDet has it, or DATA_PATH."""
    nested = given / version
    has_samples = timed(nested, partial(Path.is_dir, nested / "samples"))
    is_plain = timed(given, partial(Path.is_dir, given / "samples"))
    return given if is_plain and not has_samples else nested
