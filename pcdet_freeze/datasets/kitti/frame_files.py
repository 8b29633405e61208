"""The files of one frame in KITTI's standard layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pcdet_freeze.datasets.file_formats.files import read_bin
from pcdet_freeze.datasets.kitti.calibration import HUGE, Calibration
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside

NUM_FEATURES = 4
STEEP = 0.5
"""least cosine between the normal of a road plane and the camera's y axis"""


@dataclass(frozen=True)
class FrameFiles:
    """Files of frames under ``folder`` (``training`` or ``testing``); every reader raises DataError."""

    folder: Path

    def _path(self, kind: str, frame: str, ending: str) -> Path:
        return inside(self.folder / kind, f"{frame}.{ending}", "the frame's file")

    def points(self, frame: str) -> np.ndarray:
        """(N, 4) float32 x, y, z, intensity."""
        return read_bin(self.points_path(frame), NUM_FEATURES)

    def points_path(self, frame: str) -> Path:
        """Where the frame's points are."""
        return self._path("velodyne", frame, "bin")

    def calibration(self, frame: str) -> Calibration:
        """The frame's calibration."""
        return Calibration.from_file(self._path("calib", frame, "txt"))

    def label_path(self, frame: str) -> Path:
        """Where the frame's labels are."""
        return self._path("label_2", frame, "txt")

    def plane_path(self, frame: str) -> Path:
        """Where the frame's road plane is, if there is one."""
        return self._path("planes", frame, "txt")

    def image_path(self, frame: str) -> Path:
        """Where the frame's image is, if there is one."""
        return self._path("image_2", frame, "png")

    def image_shape(self, frame: str) -> np.ndarray:
        """(2,) int32 height, width of the frame's image, from the file's header."""
        path = self.image_path(frame)
        try:
            width, height = timed(path, lambda: _image_size(path))
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: the image's size cannot be read ({error})") from error
        return np.array([height, width], np.int32)

    def road_plane(self, frame: str) -> np.ndarray | None:
        """(4,) a, b, c, d of a x + b y + c z + d = 0 (rectified camera), normal up; or None."""
        path = self.plane_path(frame)
        if not timed(path, path.is_file):
            return None
        try:
            lines = timed(path, path.read_text).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the plane file cannot be read ({error})") from error
        try:
            plane = np.array([float(word) for word in lines[3].split()])
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{path}: the fourth line of a plane file holds four numbers ({error})"
            ) from error
        if plane.shape != (4,) or not (np.abs(plane) < HUGE).all() or plane[1] == 0:
            raise DataError(f"{path}: a road plane is four finite numbers with b != 0; got {lines[3]!r}")
        if abs(plane[1]) < STEEP * np.linalg.norm(plane[:3]):
            raise DataError(f"{path}: the normal of a road plane points up (b is large); got {lines[3]!r}")
        return plane / np.linalg.norm(plane[:3]) * -np.sign(plane[1])  # y points down: up is b < 0


def _image_size(path: Path) -> tuple[int, int]:
    with path.open("rb") as file, Image.open(file) as image:
        return image.size
