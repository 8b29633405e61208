"""A tiny log of Argoverse 2: two sweeps, three cuboids, a map of one street; written with pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import feather, table

STAMPS = (1000, 2000)
NAMES = [f"log/{stamp}" for stamp in STAMPS]
# the vehicle stands at (100, 50) in the city and looks along the city's y axis
QUARTER = {"qw": np.sqrt(0.5), "qx": 0.0, "qy": 0.0, "qz": np.sqrt(0.5)}
CUBOIDS = [
    ("REGULAR_VEHICLE", (10.0, 4.0, 0.5), (4.0, 2.0, 1.6), 30),
    ("PEDESTRIAN", (6.0, -4.0, 0.6), (0.8, 0.8, 1.8), 10),
    ("BOLLARD", (12.0, -6.0, 0.2), (0.4, 0.4, 1.0), 2),
]


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(table(columns), path)


def cloud() -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) and (N,) whether ground: points of the cuboids, one of the ground under the car, 100 others."""
    rng = np.random.RandomState(0)
    parts = [rng.uniform(-0.45, 0.45, (n, 3)) * size + centre for _, centre, size, n in CUBOIDS]
    ground = np.column_stack([rng.uniform(0, 20, (100, 1)), rng.uniform(-1, 1, (100, 1)), np.full(100, -0.3)])
    under = np.array([[10.0, 4.0, -0.25]])
    flags = np.repeat([False, True], [sum(map(len, parts)), 101])
    return np.concatenate([*parts, under, ground]), flags


def boundary(x: float, mark: str, start: float = 0.0, end: float = 120.0) -> dict[str, Any]:
    """Both sides of a lane along the city's y axis; the vehicle sees it at y = 100 - x."""
    points = [{"x": x, "y": y, "z": 0.0} for y in (start, end)]
    other = [{"x": x + 3, "y": y, "z": 0.0} for y in (end, start)]
    sides = {"left_lane_boundary": points, "left_lane_mark_type": mark}
    return {**sides, "right_lane_boundary": other, "right_lane_mark_type": "NONE"}


def make_log(root: Path, name: str = "log", advance: float = 0.0) -> Path:
    """Write the log; returns the folder that holds it.

    advance: metres that the vehicle moves forward between the sweeps.
    """
    log = root / name
    points, flags = cloud()
    for stamp in STAMPS:
        xyz = {axis: points[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
        write(log / "sensors/lidar" / f"{stamp}.feather", **xyz, intensity=np.full(len(points), 51, np.uint8))
    write(log / "flow_labels.feather", is_ground_0=flags)
    rows = [(stamp, *cuboid) for stamp in STAMPS for cuboid in CUBOIDS]
    sizes = {name: [row[3][i] for row in rows] for i, name in enumerate(("length_m", "width_m", "height_m"))}
    centres = {name: [row[2][i] for row in rows] for i, name in enumerate(("tx_m", "ty_m", "tz_m"))}
    turns = {name: [float(name == "qw")] * len(rows) for name in QUARTER}
    write(log / "annotations.feather", timestamp_ns=[row[0] for row in rows], category=[r[1] for r in rows],
          num_interior_pts=[row[4] for row in rows], **sizes, **centres, **turns)  # fmt: skip
    pose = {"tx_m": 100.0, "tz_m": 0.0, **QUARTER}
    write(
        log / "city_SE3_egovehicle.feather",
        timestamp_ns=list(STAMPS),
        ty_m=[50.0, 50.0 + advance],
        **{k: [v] * 2 for k, v in pose.items()},
    )
    segments = {
        "1": boundary(98.0, "SOLID_WHITE", end=60.0),
        "2": boundary(98.0, "SOLID_WHITE", start=60.0),
        "3": boundary(101.0, "DASHED_WHITE", end=60.0),
        "6": boundary(101.0, "DASHED_WHITE", start=60.0),
        "4": boundary(107.0, "NONE"),
        "5": boundary(500.0, "SOLID_WHITE"),
    }
    (log / "map").mkdir()
    (log / "map" / "log_map_archive_log.json").write_text(json.dumps({"lane_segments": segments}))
    return root


def make_split(root: Path, split: str, logs: int = 1, advance: float = 0.0) -> Path:
    """Write ``logs`` logs with height maps into the folder of a split; returns ``root``."""
    for number in range(logs):
        name = f"{split}-{number}"
        make_log(root / split, name, advance)
        folder = root / split / name / "map"
        np.save(folder / f"{name}_ground_height_surface____PIT.npy", np.full((434, 334), -0.3, np.float16))
        place = {"R": [1.0, 0.0, 0.0, 1.0], "t": [-50.0, 0.0], "s": 1 / 0.3}
        (folder / f"{name}___img_Sim2_city.json").write_text(json.dumps(place))
    return root
