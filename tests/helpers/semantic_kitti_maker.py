"""Small sequences in SemanticKITTI's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NUMBERS = np.array([10, 40, 40, 252, 0, 70, 254, 52] * 50, np.uint32)
"""car, road, moving car, unlabeled, vegetation, moving person, other-structure"""


def make_sequence(root: Path, number: int, sweeps: int = 2, labelled: bool = True) -> None:
    """Sweeps of 400 points in SemanticKITTI's layout; an instance id in the upper 16 bits of a label."""
    folder, rng = root / "sequences" / f"{number:02d}", np.random.RandomState(number)
    for kind in ("velodyne", "labels"):
        (folder / kind).mkdir(parents=True)
    for sweep in range(sweeps):
        points = np.column_stack([rng.uniform(-12, 12, (400, 2)), rng.uniform(-2, 1, 400), rng.rand(400)])
        (folder / "velodyne" / f"{sweep:06d}.bin").write_bytes(points.astype("<f4").tobytes())
        if labelled:
            labels = (NUMBERS | (7 << 16)).astype("<u4")
            (folder / "labels" / f"{sweep:06d}.label").write_bytes(labels.tobytes())
