"""A tiny PandaSet: one scene of two sweeps in PandaSet's format: boxes, a road and two painted lines.

The vehicle stands at (100, 50, 2) in the world and looks along the world's -x axis.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from pandas_pickles import data_frame

POSITION = (100.0, 50.0, 2.0)
HEADING = {"w": np.sqrt(0.5), "x": 0.0, "y": 0.0, "z": np.sqrt(0.5)}
ROAD, LANE, STOP_LINE, SIDEWALK, CAR, PEDESTRIAN = 7, 8, 9, 11, 13, 30
# label, sensor, id, sibling's id; seen from the vehicle: centre, (length, width, height), heading; points
CUBOIDS = [
    ("Car", -1, "a", "-", (10.0, 4.0, 0.5), (4.0, 2.0, 1.6), 0.0, 30),
    ("Pedestrian with Object", 0, "b", "c", (6.0, -4.0, 0.6), (0.8, 0.8, 1.8), 0.5, 10),
    ("Pedestrian", 1, "c", "b", (6.4, -4.0, 0.6), (0.8, 0.8, 1.8), 0.5, 0),
    ("Car", 1, "d", "-", (14.0, -4.0, 0.5), (4.0, 2.0, 1.6), 0.3, 12),
    ("Cones", -1, "e", "-", (12.0, 6.0, 0.2), (0.4, 0.4, 1.0), 0.0, 2),
]
LINES = (2.0, -1.5)
"""y of the painted lines"""


def cloud() -> dict[str, np.ndarray]:
    """Columns x, y, z (seen from the vehicle), i, d, class of a sweep."""
    rng = np.random.RandomState(0)
    parts = []
    for label, sensor, _, _, centre, size, heading, count in CUBOIDS:
        local = rng.uniform(-0.45, 0.45, (count, 3)) * size
        c, s = np.cos(heading), np.sin(heading)
        points = local @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + centre
        kind = CAR if label == "Car" else PEDESTRIAN
        parts.append(np.column_stack([points, np.full((count, 3), [51, max(sensor, 0), kind])]))
    road = np.column_stack([rng.uniform(-15, 15, (400, 1)), rng.uniform(-6, 6, (400, 1)), np.full(400, -0.4)])
    parts.append(np.column_stack([road, np.full((400, 3), [10, 0, ROAD])]))
    x = np.arange(-14.5, 15, 1.0)
    for sensor, y in enumerate(LINES):  # the forward sensor sees one of the lines
        line = np.column_stack([x, y + rng.uniform(-0.05, 0.05, len(x)), np.full(len(x), -0.4)])
        parts.append(np.column_stack([line, np.full((len(x), 3), [200, sensor, LANE])]))
    across = np.column_stack([np.full(10, 13.0), np.linspace(-1, 1.5, 10), np.full(10, -0.4)])
    parts.append(np.column_stack([across, np.full((10, 3), [180, 0, STOP_LINE])]))
    return dict(zip(("x", "y", "z", "i", "d", "class"), np.concatenate(parts).T, strict=True))


def to_world(points: np.ndarray) -> np.ndarray:
    """(N, 3) x forward, y left, z up -> the world: forward is -x, left is -y."""
    return points * (-1, -1, 1) + POSITION


def write(path: Path, version: int = 1, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data_frame(version, **columns), 1))


def cuboid_columns() -> dict[str, Any]:
    """Columns of a table of cuboids; a cuboid's yaw turns its length from the world's y axis."""
    labels, sensors, ids, siblings, centres, sizes, headings, _ = zip(*CUBOIDS, strict=True)
    centre = to_world(np.array(centres))
    length, width, height = np.array(sizes).T
    yaw = np.array(headings) + np.pi - np.pi / 2
    return {
        "uuid": list(ids), "label": list(labels), "yaw": yaw, "stationary": np.ones(len(ids), bool),
        "camera_used": np.zeros(len(ids), np.int64),
        **{f"position.{axis}": centre[:, k] for k, axis in enumerate("xyz")},
        "dimensions.x": width, "dimensions.y": length, "dimensions.z": height,
        "attributes.rider_status": [float("nan"), None, "With Rider", None, None],
        "cuboids.sibling_id": list(siblings), "cuboids.sensor_id": np.array(sensors),
    }  # fmt: skip


def make_pandaset(root: Path, scene: str = "002", sweeps: int = 2, version: int = 1) -> Path:
    """Write the scene; returns the folder that holds it."""
    folder, found = root / scene, cloud()
    world = to_world(np.stack([found[axis] for axis in "xyz"], axis=1))
    for number in range(sweeps):
        name = f"{number:02d}.pkl.gz"
        xyz = {axis: world[:, k] for k, axis in enumerate("xyz")}
        rest = {"i": found["i"], "t": np.zeros(len(world)), "d": found["d"].astype(np.int64)}
        write(folder / "lidar" / name, version, **xyz, **rest)
        write(folder / "annotations" / "cuboids" / name, version, **cuboid_columns())
        write(folder / "annotations" / "semseg" / name, version, **{"class": found["class"].astype(np.int64)})
    pose = {"position": dict(zip("xyz", POSITION, strict=True)), "heading": HEADING}
    (folder / "lidar" / "poses.json").write_text(json.dumps([pose] * sweeps))
    return root
