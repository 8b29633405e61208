"""Time the KITTI evaluation on as many frames as its validation split has; run by hand.

python tests/helpers/time_kitti.py [frames]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

LABELS, DETECTIONS = 10, 50
NAMES = np.array(["Car", "Pedestrian", "Cyclist"])
SIZES = np.array([[3.9, 1.6, 1.6], [0.8, 1.8, 0.6], [1.8, 1.7, 0.6]])
FOCAL, CENTRE_X, HORIZON = 720.0, 610.0, 175.0


def objects(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """``count`` labels strewn over the view of a camera 1.6 m above the ground."""
    kind = rng.integers(0, 3, count)
    depth = rng.uniform(6, 45, count)
    location = np.stack([rng.uniform(-0.7, 0.7, count) * depth, np.full(count, 1.6), depth], axis=1)
    rotation = rng.uniform(-np.pi, np.pi, count)
    annos = {"name": NAMES[kind], "dimensions": SIZES[kind], "location": location, "rotation_y": rotation}
    return {**annos, "truncated": np.zeros(count), "occluded": rng.integers(0, 3, count)}


def with_image(annos: dict[str, Any]) -> dict[str, Any]:
    """Add bbox and alpha, by a pinhole camera."""
    x, y, z = annos["location"].T
    length, height, _ = annos["dimensions"].T
    left, right = (CENTRE_X + FOCAL * (x + side * length / 2) / z for side in (-1, 1))
    top, bottom = HORIZON + FOCAL * (y - height) / z, HORIZON + FOCAL * y / z
    alpha = annos["rotation_y"] - np.arctan2(x, z)
    return {**annos, "bbox": np.stack([left, top, right, bottom], axis=1), "alpha": alpha}


def detected(rng: np.random.Generator, label: dict[str, Any]) -> dict[str, Any]:
    """Every label found three times, a little off, and false positives up to ``DETECTIONS``."""
    stray = objects(rng, DETECTIONS - 3 * LABELS)
    annos = {key: np.concatenate([*[label[key]] * 3, stray[key]]) for key in stray}
    annos["location"] = annos["location"] + rng.normal(0, 0.15, annos["location"].shape)
    return {**with_image(annos), "score": rng.uniform(0.1, 1, DETECTIONS)}


def main(frames: int) -> None:
    rng = np.random.default_rng(0)
    gt_annos = [with_image(objects(rng, LABELS)) for _ in range(frames)]
    dt_annos = [detected(rng, label) for label in gt_annos]
    start = time.perf_counter()
    from pcdet_freeze.evaluation import EVALUATORS

    text, _ = EVALUATORS.get("kitti")(gt_annos, dt_annos, NAMES.tolist())
    seconds = time.perf_counter() - start
    print(text)
    print(f"{frames} frames, {LABELS} labels, {DETECTIONS} detections: {seconds:.1f} s, compiling included")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3769)
