"""The files of the frames of a folder in OpenPCDet's custom layout, and of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.custom.settings import CustomSettings
from pcdet_freeze.datasets.file_formats.info_files import folders_beside
from pcdet_freeze.datasets.file_formats.point_files import Columns, read_rows
from pcdet_freeze.datasets.frames import check_points, keep_points
from pcdet_freeze.datasets.labels.label_files import LabelFiles
from pcdet_freeze.datasets.labels.label_settings import LaneSettings, lane_map_shape
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside

SUFFIXES = (".npy", ".bin", ".pcd", ".las", ".laz")
"""of point files; the first one that is there is read"""


@dataclass(frozen=True)
class CustomFrames:
    """Frames below ``root``; every reader raises DataError."""

    root: Path
    columns: Columns
    labels: LabelFiles
    scale: float = 1.0
    """the intensity is divided by it"""

    @classmethod
    def of(cls, root: Path, settings: CustomSettings) -> CustomFrames:
        """The frames that ``settings`` describe."""
        lanes = None
        if settings.lane is not None:
            shape = lane_map_shape(settings.lane.cell_size, settings.point_cloud_range)
            lanes = LaneSettings(shape, settings.lane.folder)
        columns = Columns(
            tuple(settings.point_feature_encoding.src_feature_list),
            settings.file_columns or (),
            settings.column_names or {},
            strict=True,
        )
        scale = settings.intensity.scale if settings.intensity is not None else 1.0
        return cls(root, columns, LabelFiles(root, settings.semantic, lanes), scale)

    def points_path(self, frame: str) -> Path:
        """The frame's point file; DataError where there is none."""
        paths = [inside(self.root / "points", f"{frame}{end}", "the frame's file") for end in SUFFIXES]
        found = next((path for path in paths if timed(path, path.is_file)), None)
        if found is None:
            raise DataError(
                f"{self.root / 'points'} must hold the points of frame {frame} ({', '.join(SUFFIXES)}), but "
                f"has no such file{self._beside('points')}"
            )
        return found

    def boxes_path(self, frame: str) -> Path:
        """Where the frame's boxes are, if it has any."""
        return inside(self.root / "labels", f"{frame}.txt", "the frame's file")

    def rows(self, frame: str) -> np.ndarray:
        """All rows (N, C) float32 of the frame's point file, in its order; some may hold NaN."""
        path = self.points_path(frame)
        rows = read_rows(path, self.columns)
        if not len(rows):
            raise DataError(f"{path}: a point file holds a point or more; this one is empty")
        if self.scale != 1.0:
            rows[:, self.columns.wanted.index("intensity")] /= self.scale
        return rows

    def sample(self, frame: str) -> Sample:
        """points (N, C), frame_id; point_labels and lane_map where the frame has them. No boxes."""
        rows = self.rows(frame)
        sample: Sample = {"points": rows, "frame_id": frame}
        self.labels.add(sample, frame)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():  # PCD files have NaN where a beam has no return
            keep_points(sample, finite)
        check_points(sample["points"], self.points_path(frame))
        return sample

    def files_of(self, frame: str) -> list[Path]:
        """The files of the frame, and where its boxes would be."""
        own = [self.labels.path(key, frame) for key in self.labels.keys]
        return [self.points_path(frame), self.boxes_path(frame), *(path for path in own if path is not None)]

    def check_folders(self) -> None:
        """Raise DataError where a folder is missing, and name the one that is there instead of it."""
        wanted = ["points", *self._label_folders()]
        missing = [name for name in wanted if not timed(self.root / name, (self.root / name).is_dir)]
        if "points" in missing:
            raise DataError(
                f"{self.root.absolute()} must hold points/ (one file per frame: {', '.join(SUFFIXES)}), "
                f"labels/ and ImageSets/, but points/ is not there{self._beside('points')}"
            )
        for name in missing:
            raise DataError(
                f"DATA_CONFIG asks for the labels in {name}/, but {self.root / name} is not there"
                f"{self._beside(name)}. Otherwise set SEMANTIC or LANE to null"
            )

    def _label_folders(self) -> Sequence[str]:
        settings = (self.labels.semantic, self.labels.lanes)
        return [found.folder for found in settings if found is not None]

    def _beside(self, name: str) -> str:
        folder = self.root / name
        return "" if timed(folder, folder.is_dir) else folders_beside(folder)
