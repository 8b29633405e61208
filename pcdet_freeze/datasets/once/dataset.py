"""OnceDataset: labelled frames of ONCE in OpenPCDet's layout and with its config keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from pcdet_freeze.datasets.boxes import box_fault
from pcdet_freeze.datasets.file_formats.files import read_bin
from pcdet_freeze.datasets.labels.lidar_annos import add_levels, boxes_to_anno, in_range, predicted_annos
from pcdet_freeze.datasets.packed import frame_of, read_infos
from pcdet_freeze.datasets.registry import DATASETS, Sample
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.settings.rules import Name, Rule
from pcdet_freeze.utils.untrusted_files.inside import inside

FEATURES = 4
"""x, y, z, intensity"""
SPLITS = ("train", "val", "test", "raw_small", "raw_medium", "raw_large")
Info = dict[str, Any]
Split = Annotated[str, Rule(f"one of {', '.join(SPLITS)}", SPLITS.__contains__)]
_BROKEN = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)
AGAIN = "write the info files anew with `pcdet-freeze prepare once`"


@dataclass(frozen=True, kw_only=True)
class OnceSettings(DataSettings):
    """DATA_CONFIG of OnceDataset, with OpenPCDet's keys; DATA_PATH holds ImageSets/ and data/."""

    not_built: ClassVar[tuple[str, ...]] = ("POINT_PAINTING",)

    data_split: Modes[Split]
    info_path: dict[str, tuple[Name, ...]]
    """split -> info files in INFO_ROOT"""
    cloud_data_path: Any = None
    """is not read: frames are those of DATA_PATH"""

    def faults(self) -> Iterator[str]:
        """Splits without info files, columns that the files do not have."""
        for split in (self.data_split.train, self.data_split.test):
            if split not in self.info_path:
                yield f"INFO_PATH.{split} is required: DATA_SPLIT names {split}"
        known = len(self.point_feature_encoding.src_feature_list)
        if known != FEATURES:
            yield (
                "POINT_FEATURE_ENCODING.src_feature_list must name the four columns of a frame "
                f"[x, y, z, intensity]; got {known}"
            )


@DATASETS.register_as("ONCEDataset")
class OnceDataset(DatasetTemplate):
    """Frames of the infos that INFO_PATH names for the split of this mode, but for those without boxes.

    Frame and headings are those of the files. Boxes: Car, Bus, Truck, Pedestrian, Cyclist. There are no
    labels of points or lanes.
    """

    Settings = OnceSettings

    def open_files(self, settings: OnceSettings) -> None:
        self.split = settings.data_split.of(self.training)
        paths = [self.info_root / name for name in settings.info_path[self.split]]
        infos = read_infos(paths, self.logger)
        self.infos = infos.where(infos.column("labelled"))
        self.logger.info("ONCE %s: %d of %d frames are labelled", self.split, len(self.infos), len(infos))
        if not len(self.infos):
            raise DataError(
                f"{', '.join(map(str, paths))}: none of the {len(infos)} frames has boxes; {AGAIN}"
            )

    def __len__(self) -> int:
        return len(self.infos)

    def frame_name(self, index: int) -> str:
        return frame_of(self.infos.get(index), index)

    def load_sample(self, index: int) -> Sample:
        """points (N, 4), gt_boxes (G, 7), gt_names."""
        info = self.infos[index]
        boxes, names, _ = boxes_of(info, index)
        return {
            "points": read_bin(points_path(self.root_path, info), FEATURES),
            "frame_id": frame_of(info, index),
            "gt_boxes": boxes.astype(np.float32),
            "gt_names": names,
        }

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """KITTI annotation dicts of all frames (see ``lidar_annos``)."""
        return [self._anno(info, index) for index, info in enumerate(self.infos)]

    def _anno(self, info: Info, index: int) -> dict[str, Any]:
        boxes, names, counts = boxes_of(info, index)
        levels = np.where(in_range(boxes, self.point_cloud_range), 0, 3)
        return add_levels(boxes_to_anno(boxes, names, frame_of(info, index)), levels, counts)

    def generate_prediction_dicts(
        self,
        batch_dict: dict[str, Any],
        pred_dicts: list[dict[str, Any]],
        class_names: Sequence[str],
        output_path: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions with the keys of ``ground_truth_annos``, score and pred_labels.

        ``boxes_3d`` is for ONCE's own tool.
        """
        annos = predicted_annos(batch_dict, pred_dicts, class_names, output_path)
        return [{**anno, "boxes_3d": anno["boxes_lidar"]} for anno in annos]


def points_path(root: Path, info: Any) -> Path:
    """The point file of a frame; DataError where its info does not say which."""
    try:
        name = f"data/{info['sequence_id']}/lidar_roof/{info['frame_id']}.bin"
    except _BROKEN as error:
        raise DataError(
            f"an info must hold sequence_id and frame_id; got {str(info)[:80]} ({error}); {AGAIN}"
        ) from error
    return inside(root, name, "a frame of an info")


def boxes_of(info: Any, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """boxes (K, 7) float64, names (K,), number of points (K,), -1 where it is not known.

    Raises DataError naming the frame.
    """
    frame = frame_of(info, index)
    try:
        annos = info["annos"]
        names = np.asarray(annos["name"], None if len(annos["name"]) else str)
        boxes = np.asarray(annos["boxes_3d"], np.float64).reshape(-1, 7)
        counts = np.asarray(annos.get("num_points_in_gt", np.full(len(names), -1)))
        if names.ndim != 1 or not len(names) == len(boxes) == len(counts):
            raise ValueError(f"{names.shape} names, {boxes.shape} boxes, {counts.shape} numbers of points")
        if len(names) and names.dtype.kind != "U":
            raise ValueError(f"names of {names.dtype}")
    except _BROKEN as error:
        raise DataError(f"frame {frame}: the annos of its info are broken ({error}); {AGAIN}") from error
    if fault := box_fault(boxes[:, :3], boxes[:, 3:6], boxes[:, 6]):
        raise DataError(f"frame {frame}: the annos of its info: {fault}")
    return boxes, names, counts
