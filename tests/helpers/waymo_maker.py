"""A tiny Waymo as OpenPCDet's preparation leaves it: segments of arrays with infos, and lists."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

TAG = "waymo_processed_data_v0_5_0"
# name, centre, (length, width, height), heading, points
OBJECTS = [
    ("Vehicle", (4.0, 2.0, 0.8), (4.0, 2.0, 1.6), 0.0, 30),
    ("Pedestrian", (-3.0, -2.0, 0.9), (0.8, 0.8, 1.8), 0.5, 10),
    ("Cyclist", (2.0, -4.0, 0.9), (1.8, 0.8, 1.8), 1.0, 6),
    ("Vehicle", (-5.0, 4.0, 0.8), (4.0, 2.0, 1.6), 3.0, 0),
    ("Sign", (5.0, -5.0, 2.0), (0.5, 0.5, 0.5), 0.0, 4),
    ("unknown", (0.0, 5.0, 1.0), (1.0, 1.0, 1.0), 0.0, 3),
]
ZONE = 20
"""points in a no-label zone"""
RAW_INTENSITY = 1.5


def segment_name(number: int) -> str:
    return f"segment-{number:04d}_with_camera_labels"


def objects_cloud(rng: np.random.RandomState) -> np.ndarray:
    """(N, 3): the points in the boxes, in their order."""
    parts = []
    for _, centre, size, heading, count in OBJECTS:
        local = rng.uniform(-0.45, 0.45, (count, 3)) * size
        c, s = np.cos(heading), np.sin(heading)
        parts.append(local @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + centre)
    return np.concatenate(parts)


def cloud(seed: int) -> np.ndarray:
    """(N, 6) float32: x, y, z, intensity, elongation, no-label zone (-1: outside of them)."""
    rng = np.random.RandomState(seed)
    ground = rng.uniform([-6, -6, -0.1], [6, 6, 0.0], (300, 3))
    xyz = np.concatenate([objects_cloud(rng), ground])
    flags = np.full(len(xyz), -1.0)
    flags[-ZONE:] = 0
    columns = [xyz, np.full(len(xyz), RAW_INTENSITY), np.full(len(xyz), 0.2), flags]
    return np.column_stack(columns).astype(np.float32)


def annos() -> dict[str, np.ndarray]:
    names, centres, sizes, headings, counts = map(np.array, zip(*OBJECTS, strict=True))
    speed = np.full((len(names), 2), 0.5)
    return {
        "name": names, "difficulty": np.zeros(len(names), np.int64), "dimensions": sizes,
        "location": centres, "heading_angles": headings, "num_points_in_gt": counts,
        "obj_ids": np.array([f"id{k}" for k in range(len(names))]), "speed_global": speed,
        "tracking_difficulty": np.zeros(len(names), np.int64), "accel_global": speed,
        "gt_boxes_lidar": np.concatenate([centres, sizes, headings[:, None], speed], axis=1),
    }  # fmt: skip


def info(name: str, number: int) -> dict[str, Any]:
    return {
        "point_cloud": {"num_features": 5, "lidar_sequence": name, "sample_idx": number},
        "frame_id": f"{name}_{number:03d}",
        "metadata": {"context_name": name, "timestamp_micros": 1000 * number},
        "image": {f"image_shape_{k}": (1280, 1920) for k in range(5)},
        "pose": np.eye(4, dtype=np.float32),
        "annos": annos(),
        "num_points_of_each_lidar": [300, 0, 0, 0, 0],
    }


def write_segment(root: Path, name: str, frames: int) -> None:
    folder = root / TAG / name
    folder.mkdir(parents=True)
    for number in range(frames):
        np.save(folder / f"{number:04d}.npy", cloud(number))
    (folder / f"{name}.pkl").write_bytes(pickle.dumps([info(name, number) for number in range(frames)]))


def make_waymo(root: Path, frames: int = 5) -> Path:
    """Segments 0 and 1 for training, 2 for val, ``frames`` each; a listed one is missing."""
    splits = {"train": [0, 1, 9], "val": [2]}
    (root / "ImageSets").mkdir(parents=True)
    for split, numbers in splits.items():
        lines = [f"{segment_name(number)}.tfrecord" for number in numbers]
        (root / "ImageSets" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for number in numbers[:2]:
            write_segment(root, segment_name(number), frames)
    return root
