"""A tiny ONCE: sequences with a JSON file and the frames of the roof LiDAR, of which some are labelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("cam01", "cam03", "cam05", "cam06", "cam07", "cam08", "cam09")
# name, centre, (length, width, height), heading, points
OBJECTS = [
    ("Car", (4.0, 2.0, -0.8), (4.0, 2.0, 1.6), 0.0, 30),
    ("Bus", (-4.0, -3.0, -0.4), (4.5, 2.2, 2.4), 1.5, 20),
    ("Truck", (-3.0, 4.0, -0.4), (4.5, 2.2, 2.4), -3.0, 15),
    ("Pedestrian", (2.0, -2.0, -0.7), (0.8, 0.8, 1.8), 0.5, 10),
    ("Cyclist", (3.0, -5.0, -0.7), (1.8, 0.8, 1.8), 1.0, 8),
]
SEQUENCES = {"train": ["000076", "000080"], "val": ["000027"], "test": ["000112"], "raw_small": ["000000"]}
LABELLED = (0, 2)
"""frames of a sequence of train and val that have boxes; frame 3 has labels, but no box"""
FRAMES = 4


def frame_id(number: int) -> str:
    return str(1616343527200 + 500 * number)


def cloud(seed: int) -> np.ndarray:
    """(N, 4) float32: x, y, z, intensity."""
    rng = np.random.RandomState(seed)
    parts = []
    for _, centre, size, heading, count in OBJECTS:
        local = rng.uniform(-0.45, 0.45, (count, 3)) * size
        c, s = np.cos(heading), np.sin(heading)
        parts.append(local @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + centre)
    parts.append(rng.uniform([-6, -6, -1.7], [6, 6, -1.6], (300, 3)))
    xyz = np.concatenate(parts)
    return np.column_stack([xyz, rng.uniform(0, 1, len(xyz))]).astype(np.float32)


def annos() -> dict[str, Any]:
    return {
        "names": [name for name, *_ in OBJECTS],
        "boxes_3d": [[*centre, *size, heading] for _, centre, size, heading, _ in OBJECTS],
        "boxes_2d": {camera: [[10.0, 10.0, 50.0, 50.0]] * len(OBJECTS) for camera in CAMERAS},
    }


def sequence(name: str, labelled: bool) -> dict[str, Any]:
    frames: list[dict[str, Any]] = []
    for number in range(FRAMES):
        frame: dict[str, Any] = {
            "sequence_id": name,
            "frame_id": frame_id(number),
            "pose": [0, 0, 0, 1, 0, 0, 0],
        }
        if labelled and number in LABELLED:
            frame["annos"] = annos()
        elif labelled and number == 3:
            frame["annos"] = {"names": [], "boxes_3d": [], "boxes_2d": {camera: [] for camera in CAMERAS}}
        frames.append(frame)
    matrices = {
        "cam_to_velo": np.eye(4).tolist(),
        "cam_intrinsic": np.eye(3).tolist(),
        "distortion": [0.0] * 8,
    }
    meta = {"weather": "sunny", "period": "morning", "image_size": [1920, 1020], "point_feature_num": 4}
    return {"meta_info": meta, "calib": dict.fromkeys(CAMERAS, matrices), "frames": frames}


def make_once(root: Path) -> Path:
    """Write all splits; returns ``root``."""
    (root / "ImageSets").mkdir(parents=True)
    for split, names in SEQUENCES.items():
        (root / "ImageSets" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            folder = root / "data" / name
            (folder / "lidar_roof").mkdir(parents=True)
            content = sequence(name, labelled=split in ("train", "val"))
            (folder / f"{name}.json").write_text(json.dumps(content))
            for number in range(FRAMES):
                cloud(number).tofile(folder / "lidar_roof" / f"{frame_id(number)}.bin")
    return root
