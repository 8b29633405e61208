"""A tiny KITTI in the standard layout: a few points, one box or two a frame, small blank images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CALIB = {
    "P2": [300, 0, 300, 0, 0, 300, 100, 0, 0, 0, 1, 0],
    "R0_rect": [1, 0, 0, 0, 1, 0, 0, 0, 1],
    "Tr_velo_to_cam": [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0],
}
IMAGE_SIZE = (600, 200)  # width, height
# LiDAR (15, 2, -0.75): camera x = -2, y = 0.75, z = 15; location is the bottom centre
CAR = "Car 0.00 0 0.13 200 80 260 130 1.50 1.60 4.00 -2.00 1.50 15.00 0.00"
WALKER = "Pedestrian 0.10 1 0.00 300 60 320 120 1.80 0.60 0.80 3.00 1.50 12.00 1.50"
DONT_CARE = "DontCare -1 -1 -10 500 100 520 120 -1 -1 -1 -1000 -1000 -1000 -10"
LABELS = ([DONT_CARE, CAR], [CAR, WALKER], [WALKER])


def scene_points(seed: int) -> np.ndarray:
    """(N, 4): 40 points in the car, 20 in the pedestrian, 300 on the ground ahead, 50 behind."""
    rng = np.random.RandomState(seed)

    def cloud(number: int, low: list[float], high: list[float]) -> np.ndarray:
        return rng.uniform([*low, 0.0], [*high, 1.0], (number, 4)).astype(np.float32)

    return np.concatenate([
        cloud(40, [14.4, 0.2, -1.4], [15.6, 3.8, -0.1]),
        cloud(20, [11.8, -3.2, -1.4], [12.2, -2.8, 0.2]),
        cloud(300, [5, -8, -1.7], [40, 8, -1.6]),
        cloud(50, [-20, -8, -1.7], [-5, 8, -1.6]),
    ])  # fmt: skip


def make_kitti(root: Path, frames: int = 3, planes: bool = False) -> Path:
    """Write ``frames`` frames under ``root``; train: all of them, val: all but the first."""
    names = [f"{number:06d}" for number in range(frames)]
    for folder in ("velodyne", "calib", "label_2", "image_2", *(["planes"] if planes else [])):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("\n".join(names) + "\n")
    (root / "ImageSets" / "val.txt").write_text("\n".join(names[1:]) + "\n")
    for number, name in enumerate(names):
        write_frame(root / "training", name, number, planes)
    return root


def write_frame(folder: Path, name: str, number: int, planes: bool) -> None:
    scene_points(number).tofile(folder / "velodyne" / f"{name}.bin")
    lines = [f"{key}: {' '.join(map(str, values))}" for key, values in CALIB.items()]
    (folder / "calib" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "label_2" / f"{name}.txt").write_text("\n".join(LABELS[number % 3]) + "\n")
    Image.new("L", IMAGE_SIZE).save(folder / "image_2" / f"{name}.png")
    if planes:
        text = "# Matrix\nWIDTH 4\nHEIGHT 1\n0.0 2.0 0.0 -3.2\n"  # y = 1.6 below the camera, normal down
        (folder / "planes" / f"{name}.txt").write_text(text)
