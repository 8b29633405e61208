"""One sweep of a scene: points, boxes and point classes in the vehicle's frame (x forward, y left, z up).

PandaSet stores everything in the frame of the world. ``lidar/poses.json`` says where the vehicle stands; its
own axes are x right, y forward, z up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.argoverse2.poses import Pose, rotation_matrices
from pcdet_freeze.datasets.frames import check_points
from pcdet_freeze.datasets.pandaset.tables import MOST_CUBOIDS, read_json, read_table
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask

SPINNING, FORWARD = 0, 1
"""sensors, as the column ``d`` of the points numbers them"""
BOTH = -1
"""``cuboids.sensor_id`` of a cuboid that is where both sensors see it"""
LANE_MARKING = 8
"""class of the points of painted lane lines"""
_CENTRE = ("position.x", "position.y", "position.z")
_SIZE = ("dimensions.y", "dimensions.x", "dimensions.z")
"""length, width, height"""
_TEXTS = ("uuid", "label", "cuboids.sibling_id")


@dataclass(frozen=True)
class Cloud:
    """All points of a sweep, of both sensors."""

    world: np.ndarray
    """(N, 3) float64 x, y, z in the world's frame"""
    points: np.ndarray
    """(N, 4) float32 x, y, z, intensity in 0..1, in the vehicle's frame"""
    sensors: np.ndarray
    """(N,) SPINNING or FORWARD"""


@dataclass(frozen=True)
class Cuboids:
    """Annotated boxes of a sweep, in the vehicle's frame."""

    boxes: np.ndarray
    """(K, 7) float32; the centre is the middle of the box"""
    categories: np.ndarray
    """(K,) str"""
    num_points: np.ndarray
    """(K,) points of the wanted sensors inside, counted in the world's frame, where cuboids stand upright"""


@dataclass(frozen=True)
class Sweep:
    """The files of sweep ``number`` in the folder of its scene; every reader raises DataError."""

    scene: Path
    number: int

    @property
    def name(self) -> str:
        """Scene and number, as in a file name."""
        return f"{self.scene.name}_{self.number:02d}"

    def path(self, folder: str) -> Path:
        """The table of this sweep in ``folder`` of the scene: lidar, annotations/cuboids, ..."""
        return self.scene / folder / f"{self.number:02d}.pkl.gz"

    def has(self, folder: str) -> bool:
        """Whether the table of this sweep is there."""
        path = self.path(folder)
        return timed(path, path.is_file)

    @property
    def poses_path(self) -> Path:
        """The poses of all sweeps of the scene."""
        return self.scene / "lidar" / "poses.json"

    def cloud(self) -> Cloud:
        """The points of both sensors, in the order of the file."""
        path = self.path("lidar")
        table = read_table(path, ("x", "y", "z", "i", "d"))
        world = np.stack([table[axis] for axis in "xyz"], axis=1)
        points = np.column_stack([self._to_vehicle(world), table["i"] / 255]).astype(np.float32)
        return Cloud(world, check_points(points, path), table["d"].astype(np.int64))

    def classes(self, points: int) -> np.ndarray | None:
        """(points,) int64, PandaSet's class of each point; None for a sweep without point labels."""
        path = self.path("annotations/semseg")
        if not self.has("annotations/semseg"):
            return None
        values = read_table(path, ("class",))["class"]
        if len(values) != points or ((values < 0) | (values > 2**16)).any():
            raise DataError(
                f"{path}: point labels hold a class for each of the {points} points of their sweep; got "
                f"{len(values)} rows. Is it the file of another sweep?"
            )
        return values.astype(np.int64)

    def cuboids(self, cloud: Cloud, sensors: Sequence[int]) -> Cuboids | None:
        """Cuboids that belong to one of ``sensors`` or to both; None for a sweep without cuboids.

        The sensors see a moving object at different times. One that has a cuboid for each of them (the
        siblings) comes once, as the first of ``sensors`` sees it.
        """
        path = self.path("annotations/cuboids")
        if not self.has("annotations/cuboids"):
            return None
        table = read_table(path, ("yaw", *_CENTRE, *_SIZE, "cuboids.sensor_id"), _TEXTS, MOST_CUBOIDS)
        kept = _of_sensors(table, sensors)
        columns = {name: values[kept] for name, values in table.items()}
        rows = np.column_stack([columns[name] for name in (*_CENTRE, *_SIZE)])
        turn = columns["yaw"]  # of the length, from the world's y axis
        standing = np.column_stack([rows, turn + np.pi / 2])
        counted = points_in_boxes_mask(cloud.world[np.isin(cloud.sensors, sensors)], standing, margin=0.0)
        along = np.stack([-np.sin(turn), np.cos(turn), np.zeros_like(turn)], axis=1) @ self._axes()
        heading = np.arctan2(along[:, 1], along[:, 0])
        boxes = np.column_stack([self._to_vehicle(rows[:, :3]), rows[:, 3:], heading]).astype(np.float32)
        return Cuboids(boxes, columns["label"], counted.sum(axis=1))

    def _to_vehicle(self, world: np.ndarray) -> np.ndarray:
        """(N, 3) of the world's frame -> (N, 3) x forward, y left, z up."""
        return (world - self._pose.translation) @ self._axes()

    def _axes(self) -> np.ndarray:
        """(3, 3) columns: the vehicle's forward, left and up in the world's frame."""
        right, forward, up = self._pose.rotation.T
        return np.stack([forward, -right, up], axis=1)

    @cached_property
    def _pose(self) -> Pose:
        path = self.poses_path
        poses = read_json(path)
        try:
            entry = poses[self.number]
            quaternion = np.array([[float(entry["heading"][part]) for part in "wxyz"]])
            position = np.array([float(entry["position"][axis]) for axis in "xyz"])
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: must hold position (x, y, z) and heading (w, x, y, z) of sweep {self.number}; "
                f"{error!r}"
            ) from error
        if not np.isfinite(position).all() or not abs(np.linalg.norm(quaternion) - 1) < 1e-3:
            raise DataError(
                f"{path}: the heading of sweep {self.number} must be a unit quaternion and its position "
                f"finite; got {quaternion[0].tolist()} and {position.tolist()}"
            )
        return Pose(rotation_matrices(quaternion)[0], position)


def _of_sensors(table: dict[str, np.ndarray], sensors: Sequence[int]) -> np.ndarray:
    """Rows of the cuboids that ``sensors`` see, of siblings only that of the first sensor."""
    found = np.flatnonzero(table["cuboids.sensor_id"] == BOTH).tolist()
    seen: set[str] = set()
    for sensor in sensors:
        rows = np.flatnonzero(table["cuboids.sensor_id"] == sensor)
        found += [int(row) for row in rows if str(table["cuboids.sibling_id"][row]) not in seen]
        seen |= {str(table["uuid"][row]) for row in rows}
    return np.array(sorted(found), np.int64)
