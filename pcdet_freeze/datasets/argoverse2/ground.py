"""Ground points by the height map of a log, as Argoverse 2 defines them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.file_formats.files import read_npy
from pcdet_freeze.datasets.reading.last_kept import last_kept
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError

NEAR = 0.3
"""metres from the ground within which points belong to it"""
FILES = ("*_ground_height_surface____*.npy", "*img_Sim2_city.json")


@dataclass(frozen=True)
class HeightMap:
    """Height of the ground in the city frame: ``heights`` (H, W), NaN where it is not known."""

    heights: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    scale: float
    """cell of x, y: ``scale * (rotation @ xy + translation)``, column first"""

    def is_ground(self, points: np.ndarray) -> np.ndarray:
        """(N,) bool for points (N, 3) in the city frame: at most NEAR above the ground, or below it."""
        cells = (self.scale * (points[:, :2] @ self.rotation.T + self.translation)).astype(np.int64)
        known = ((cells >= 0) & (cells < self.heights.shape[::-1])).all(axis=1)
        height = np.full(len(points), np.nan)
        height[known] = self.heights[cells[known, 1], cells[known, 0]]
        return points[:, 2] - height <= NEAR  # NaN compares as False


def read_heights(folder: Path) -> HeightMap:
    """The height map in a log's ``map`` folder; DataError that names a file."""
    files = [sorted(folder.glob(pattern)) for pattern in FILES]
    if not all(files):
        raise DataError(
            f"{folder}: has no height map ({' and '.join(FILES)}). Fetch the maps, or set POINT_LABELS: false"
        )
    return _read(files[0][0], files[1][0])


@last_kept
def _read(heights: Path, place: Path) -> HeightMap:
    values = read_npy(heights)
    try:
        found = json.loads(timed(place, place.read_bytes))
        rotation, shift = np.array(found["R"], np.float64).reshape(2, 2), np.array(found["t"], np.float64)
        scale = float(found["s"])
        if values.ndim != 2 or values.dtype.kind != "f" or shift.shape != (2,) or not np.isfinite(scale):
            raise ValueError(f"heights of shape {values.shape}, translation of shape {shift.shape}")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{place}: not the place of a height map ({error!r}). Fetch it again") from error
    return HeightMap(values.astype(np.float64), rotation, shift, scale)
