"""Scene -> frame: cast the rays, simulate the returns, count the points of each object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.synthetic.labels import LaneGrid, lane_polylines, lane_raster
from pcdet_freeze.datasets.synthetic.lidar_returns import Emission, count_alone, lidar_returns
from pcdet_freeze.datasets.synthetic.raycast import hits_alone, nearest_hits
from pcdet_freeze.datasets.synthetic.scene import Scene
from pcdet_freeze.datasets.synthetic.sensor import Sensor, rays


@dataclass(frozen=True)
class Frame:
    """Points of one revolution and their annotations. LiDAR frame, metres.

    ``points`` (N, 4) float32 x, y, z, intensity; ``labels`` (N,) uint8 (labels.CLASSES); ``owner`` (N,) int16
    index of the object of each point, or -1; ``boxes`` (G, 7) float64; ``names`` (G,) str; ``num_points``
    (G,) points of each object inside the range; ``alone`` (G,) points of each object without occlusion;
    ``occlusion`` (G,) = 1 - points / alone (1 if alone is 0); ``lane_map`` (H, W) uint8; ``polylines``: one
    (P, 3) array per lane line, left to right; ``attempt``: number of rejected layouts.
    """

    points: NDArray[np.float32]
    labels: NDArray[np.uint8]
    owner: NDArray[np.int16]
    boxes: NDArray[np.float64]
    names: NDArray[np.str_]
    num_points: NDArray[np.int64]
    alone: NDArray[np.int64]
    occlusion: NDArray[np.float64]
    lane_map: NDArray[np.uint8]
    polylines: list[NDArray[np.float64]]
    attempt: int = 0


def render(
    scene: Scene,
    sensor: Sensor,
    limits: NDArray[np.float32],
    grid: LaneGrid,
    lane_width: float,
    attempt: int = 0,
) -> Frame:
    """Render one revolution of ``scene``; ``limits`` (6,) is the range in which points of objects count."""
    revolution, key, count = rays(sensor, scene.start), np.uint64(scene.key), len(scene.boxes)
    emission = Emission(sensor.max_range, sensor.range_noise, sensor.dropout, sensor.spurious)
    ground, lines = scene.street.ground, scene.street.lines
    table = np.array([line.row() for line in lines], np.float64).reshape(-1, 7)
    hits = nearest_hits(scene.solids, ground, revolution, sensor.max_range, key)
    seen = lidar_returns(hits, scene.solids, ground, table, revolution, emission, key)
    solo = hits_alone(scene.solids, scene.hull, scene.offsets, revolution, sensor.max_range, key)
    alone = count_alone(solo, scene.solids, sensor.dropout, count, key)
    own = np.bincount(seen.owner[seen.owner >= 0], minlength=count)
    inside = ((seen.points[:, :3] >= limits[:3]) & (seen.points[:, :3] < limits[3:])).all(axis=1)
    return Frame(
        points=seen.points,
        labels=seen.labels,
        owner=seen.owner,
        boxes=scene.boxes,
        names=np.array(scene.names, dtype=str),
        num_points=np.bincount(seen.owner[inside & (seen.owner >= 0)], minlength=count),
        alone=alone,
        occlusion=np.where(alone > 0, 1.0 - own / np.maximum(alone, 1), 1.0),
        lane_map=lane_raster(lines, ground, grid, lane_width),
        polylines=lane_polylines(lines, ground, grid),
        attempt=attempt,
    )
