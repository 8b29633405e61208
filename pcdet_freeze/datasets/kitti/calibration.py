"""Between the LiDAR, the rectified camera and the image (KITTI devkit, ``devkit/cpp/readme.txt``).

rect = R0_rect @ Tr_velo_to_cam @ lidar;  image = P2 @ rect.  Camera axes: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError

HUGE = 1e7
"""no entry of a calibration is larger: pixels and metres"""
APART = 100.0
"""metres between the sensors of a vehicle at most"""
TOLERANCE = 0.01
"""of the scalar products of a rotation's rows; files write three digits or more"""
_SHAPES = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}


@dataclass(frozen=True)
class Calibration:
    """P2 (3, 4), R0_rect (3, 3) and Tr_velo_to_cam (3, 4) of one frame, float64."""

    P2: np.ndarray
    R0_rect: np.ndarray
    Tr_velo_to_cam: np.ndarray

    @classmethod
    def from_file(cls, path: Path) -> Calibration:
        """Read ``calib/<id>.txt``; DataError that names the file and the matrix that is missing or broken."""
        try:
            lines = timed(path, path.read_text).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the calibration file cannot be read ({error})") from error
        texts = dict(line.split(":", 1) for line in lines if ":" in line)
        calib = cls(**{name: _matrix(path, name, texts.get(name)) for name in _SHAPES})
        if fault := calib.fault():
            raise DataError(f"{path}: {fault}")
        return calib

    @classmethod
    def from_info(cls, calib: dict[str, Any]) -> Calibration:
        """From the (4, 4) matrices of an info file."""
        return cls(
            **{
                name: np.asarray(calib[name], np.float64)[:rows, :cols]
                for name, (rows, cols) in _SHAPES.items()
            }
        )

    def fault(self) -> str:
        """What is wrong with the matrices; empty where nothing is."""
        for name, shape in _SHAPES.items():
            matrix = getattr(self, name)
            if matrix.shape != shape or not (np.abs(matrix) < HUGE).all():
                return f"{name} must be {shape[0]} by {shape[1]} finite numbers; got shape {matrix.shape}"
        for name in ("R0_rect", "Tr_velo_to_cam"):
            turn = getattr(self, name)[:, :3]
            if np.abs(turn @ turn.T - np.eye(3)).max() > TOLERANCE or np.linalg.det(turn) < 0:
                return (
                    f"{name} must be a rotation (orthonormal rows, determinant 1); got {_rounded(turn)}. "
                    "Is it another matrix, or transposed with its translation?"
                )
        shift = self.Tr_velo_to_cam[:, 3]
        if np.abs(shift).max() > APART:
            return f"the translation of Tr_velo_to_cam must be within {APART:g} m; got {_rounded(shift)}"
        if abs(np.linalg.det(self.P2[:, :3])) < 1e-9:
            return f"P2 must be a projection that can be inverted; got {_rounded(self.P2)}"
        return ""

    def to_info(self) -> dict[str, np.ndarray]:
        """As (4, 4) matrices, the form that info files have."""
        return {name: _padded(getattr(self, name)) for name in _SHAPES}

    @property
    def _lidar_to_rect(self) -> np.ndarray:
        return _padded(self.R0_rect) @ _padded(self.Tr_velo_to_cam)

    def lidar_to_rect(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) metres, LiDAR -> rectified camera, float64."""
        return _transform(points, self._lidar_to_rect)

    def rect_to_lidar(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) metres, rectified camera -> LiDAR, float64."""
        return _transform(points, np.linalg.inv(self._lidar_to_rect))

    def rect_to_image(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) metres, rectified camera -> pixels (N, 2) u, v and depth (N,) in metres."""
        seen = np.asarray(points, np.float64) @ self.P2[:, :3].T + self.P2[:, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = seen[:, :2] / seen[:, 2:3]
        return pixels, seen[:, 2] - self.P2[2, 3]

    def in_image(self, points: np.ndarray, image_shape: np.ndarray) -> np.ndarray:
        """Mask (N,) of the LiDAR points (N, 3+) that fall into the image; image_shape: (height, width)."""
        pixels, depth = self.rect_to_image(self.lidar_to_rect(points[:, :3]))
        height, width = image_shape
        inside = (pixels >= 0) & (pixels < [width, height])
        return inside.all(axis=1) & (depth >= 0)


def _matrix(path: Path, name: str, text: str | None) -> np.ndarray:
    shape = _SHAPES[name]
    if text is None:
        raise DataError(f"{path}: a calibration file must have a line {name}; it has none")
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise DataError(f"{path}: {name} must be numbers; got {text.strip()!r}") from error
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        raise DataError(f"{path}: {name} must be {shape[0] * shape[1]} finite numbers; got {text.strip()!r}")
    return values.reshape(shape)


def _rounded(matrix: np.ndarray) -> str:
    return str(np.round(matrix, 3).tolist())


def _padded(matrix: np.ndarray) -> np.ndarray:
    full = np.eye(4)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full


def _transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
