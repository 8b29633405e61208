"""One sweep of a log: points, boxes and ground flags, all in the vehicle's frame (x forward, z up)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.argoverse2.boundaries import lines_around, read_boundaries
from pcdet_freeze.datasets.argoverse2.poses import QUATERNION, TRANSLATION, Pose, headings
from pcdet_freeze.datasets.argoverse2.tables import read_table
from pcdet_freeze.datasets.frames import check_points
from pcdet_freeze.datasets.reading.last_kept import last_kept
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError

TURNED = 1e-2
"""of a rotation's entries: what rounding leaves is far below"""
SIZE = ("length_m", "width_m", "height_m")


@last_kept
def _read_boxes(path: Path) -> dict[str, np.ndarray]:
    """The cuboids of all sweeps of a log."""
    numbers = ("timestamp_ns", "num_interior_pts", *TRANSLATION, *SIZE, *QUATERNION)
    return read_table(path, numbers, ("category",))


@last_kept
def _read_poses(path: Path) -> dict[str, np.ndarray]:
    """The vehicle's poses in a log."""
    return read_table(path, ("timestamp_ns", *QUATERNION, *TRANSLATION))


@dataclass(frozen=True)
class Boxes:
    """Annotated cuboids: ``boxes`` (K, 7) float32, ``categories`` (K,) str, ``num_points`` (K,) inside."""

    boxes: np.ndarray
    categories: np.ndarray
    num_points: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """The files of the sweep ``timestamp`` (ns) in the folder of its log; every reader raises DataError."""

    log: Path
    timestamp: int

    @property
    def name(self) -> str:
        """Log and timestamp, as in a file name."""
        return f"{self.log.name}_{self.timestamp}"

    @property
    def path(self) -> Path:
        """The table of its points."""
        return self.log / "sensors" / "lidar" / f"{self.timestamp}.feather"

    def points(self) -> np.ndarray:
        """(N, 4) float32 x, y, z, intensity in 0..1."""
        table = read_table(self.path, ("x", "y", "z", "intensity"))
        columns = [table[name].astype(np.float32) for name in ("x", "y", "z", "intensity")]
        columns[3] /= 255
        return check_points(np.stack(columns, axis=1), self.path)

    @property
    def boxes_path(self) -> Path:
        """The table of the cuboids of all sweeps of the log."""
        return self.log / "annotations.feather"

    @property
    def poses_path(self) -> Path:
        """The table of the vehicle's poses in the log."""
        return self.log / "city_SE3_egovehicle.feather"

    def has_boxes(self) -> bool:
        """Whether the log is annotated."""
        return timed(self.boxes_path, self.boxes_path.is_file)

    def boxes(self) -> Boxes:
        """All cuboids of the sweep; the centre is the middle of the box."""
        table = _read_boxes(self.boxes_path)
        here = table["timestamp_ns"] == self.timestamp
        columns = {name: values[here] for name, values in table.items()}
        turn = headings(np.stack([columns[name] for name in QUATERNION], axis=1))
        rows = np.column_stack([*(columns[name] for name in (*TRANSLATION, *SIZE)), turn])
        return Boxes(rows.astype(np.float32), columns["category"], columns["num_interior_pts"])

    def ground(self, points: int) -> np.ndarray | None:
        """(N,) bool, which points are ground; None for a sweep that has no flow labels.

        ``flow_labels.feather`` belongs to the first sweep in the log's folder.
        """
        path = self.log / "flow_labels.feather"
        first = min(int(other.stem) for other in self.path.parent.glob("*.feather"))
        if not path.is_file() or first != self.timestamp:
            return None
        flags = read_table(path, ("is_ground_0",))["is_ground_0"].astype(bool)
        if len(flags) != points:
            raise DataError(
                f"{path}: flow labels hold one row for each of the {points} points of {self.path.name}, the "
                f"log's first sweep; got {len(flags)}. Is that sweep the one that they were made for?"
            )
        return flags

    def lane_lines(self, limits: np.ndarray, painted_only: bool) -> list[np.ndarray]:
        """Lines (n, 2) x, y in metres inside ``limits`` (6,), from left to right."""
        maps = sorted((self.log / "map").glob("log_map_archive_*.json"))
        if not maps:
            raise DataError(f"{self.log / 'map'}: has no vector map (log_map_archive_*.json)")
        return lines_around(read_boundaries(maps[0], painted_only), self.city_from_ego(), limits)

    def city_from_ego(self) -> Pose:
        """The vehicle's pose at the time of the sweep."""
        path = self.poses_path
        table = _read_poses(path)
        rows = np.flatnonzero(table["timestamp_ns"] == self.timestamp)
        if not len(rows):
            raise DataError(f"{path}: has no pose at the sweep's time {self.timestamp}")
        pose = Pose.of_row(table, int(rows[0]))
        if not np.allclose(pose.rotation @ pose.rotation.T, np.eye(3), atol=TURNED):
            raise DataError(
                f"{path}: the quaternion at {self.timestamp} must have the length 1. Fetch it again"
            )
        return pose
