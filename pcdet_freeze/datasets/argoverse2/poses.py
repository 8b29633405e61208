"""Rotations and poses of Argoverse 2: unit quaternions (qw, qx, qy, qz) and translations in metres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

QUATERNION = ("qw", "qx", "qy", "qz")
TRANSLATION = ("tx_m", "ty_m", "tz_m")


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """(K, 4) unit quaternions, real part first -> (K, 3, 3) for column vectors (Shoemake, SIGGRAPH 1985)."""
    w, x, y, z = np.asarray(quaternions, np.float64).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def headings(quaternions: np.ndarray) -> np.ndarray:
    """(K, 4) -> (K,) radians counter-clockwise about z, of the rotated x axis."""
    turned = rotation_matrices(quaternions)[:, :, 0]
    return np.arctan2(turned[:, 1], turned[:, 0])


@dataclass(frozen=True)
class Pose:
    """Where a frame stands in another one: ``outer = rotation @ inner + translation``."""

    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def of_row(cls, table: Mapping[str, np.ndarray], row: int) -> Pose:
        """From the columns QUATERNION and TRANSLATION."""
        quaternion = np.array([[table[name][row] for name in QUATERNION]])
        return cls(rotation_matrices(quaternion)[0], np.array([table[name][row] for name in TRANSLATION]))

    def to_inner(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) of the outer frame -> (N, 3) of the inner one."""
        return (np.asarray(points, np.float64) - self.translation) @ self.rotation

    def to_outer(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) of the inner frame -> (N, 3) of the outer one."""
        return np.asarray(points, np.float64) @ self.rotation.T + self.translation


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """(3, 3) rotation -> (4,) unit quaternion, real part first and not negative (Shepperd, JGCD 1978)."""
    trace = np.trace(rotation)
    squares = np.array([trace, *np.diag(rotation)])
    largest = int(squares.argmax())
    r = rotation
    off = [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]
    both = [r[2, 1] + r[1, 2], r[0, 2] + r[2, 0], r[1, 0] + r[0, 1]]
    rows = np.array(
        [
            [1 + trace, off[0], off[1], off[2]],
            [off[0], 1 + 2 * r[0, 0] - trace, both[2], both[1]],
            [off[1], both[2], 1 + 2 * r[1, 1] - trace, both[0]],
            [off[2], both[1], both[0], 1 + 2 * r[2, 2] - trace],
        ]
    )
    found = rows[largest] / np.linalg.norm(rows[largest])
    return found if found[0] >= 0 else -found
