"""A tiny folder in OpenPCDet's custom layout: a road with two lines, a car and a walker in each frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_freeze.ops.lanes import draw_lines

LIMITS = (-12.8, -12.8, -3.0, 12.8, 12.8, 3.0)
ROAD, PAINT, CAR, WALKER = 0, 1, 4, 5
"""classes of cfgs/custom_models/stage2_segment.yaml"""
LINES = (3.0, -3.0)
BOXES = "4 2 -0.2 4 2 1.6 0 Vehicle \n-5.00 -4.0 -0.1 0.8 0.8 1.8 1.57 Pedestrian\n"
COUNTS = (60, 20)


def points_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) float32 x, y, z, intensity in 0..1, and the class (N,) of each point."""
    rng = np.random.RandomState(seed)

    def cloud(count: int, low: tuple[float, ...], high: tuple[float, ...], kind: int) -> np.ndarray:
        return np.column_stack([rng.uniform(low, high, (count, 4)), np.full(count, kind)])

    rows = np.concatenate([
        cloud(COUNTS[0], (2.2, 1.2, -0.9, 0.3), (5.8, 2.8, 0.5, 0.4), CAR),
        cloud(COUNTS[1], (-5.3, -4.3, -0.9, 0.1), (-4.7, -3.7, 0.7, 0.2), WALKER),
        cloud(600, (-12, -12, -1.1, 0.0), (12, 12, -1.0, 0.1), ROAD),
        *(cloud(80, (-12, y - 0.1, -1.05, 0.8), (12, y + 0.1, -1.0, 0.9), PAINT) for y in LINES),
    ])  # fmt: skip
    return rows[:, :4].astype(np.float32), rows[:, 4].astype(np.int64)


def make_custom(root: Path, frames: int = 3, labels: bool = True) -> Path:
    """Write ``frames`` frames below ``root``; train: all of them, val: all but the first.

    Args:
        labels: write semantic/ and lanes/ too.
    """
    names = [f"{number:06d}" for number in range(frames)]
    for folder in ("points", "labels", "ImageSets", *(["semantic", "lanes"] if labels else [])):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/train.txt").write_text("\n".join(names))
    (root / "ImageSets/val.txt").write_text("\n".join(names[1:]))
    lines = [np.array([[-12.8, y], [12.8, y]]) for y in LINES]
    for number, name in enumerate(names):
        points, classes = points_of(number)
        np.save(root / "points" / f"{name}.npy", points)
        (root / "labels" / f"{name}.txt").write_text(BOXES)
        if labels:
            np.save(root / "semantic" / f"{name}.npy", classes)
            np.save(root / "lanes" / f"{name}.npy", draw_lines(lines, LIMITS, (80, 80), 0.3))
    return root
