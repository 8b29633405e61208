"""Scenes whose average precision can be computed in the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

Annos = list[dict[str, Any]]

ENOUGH = 41  # a curve has 41 points, and no more than there are matched labels
BESIDE = {"x": 10.0, "left": 300.0}  # far from the car that every frame has
WIDTHS = {"bbox": 4, "dimensions": 3, "location": 3}


def car(
    name: str = "Car",
    *,
    x: float = 0.0,
    y: float = 1.6,
    left: float = 100.0,
    height: float = 100.0,
    **changes: Any,
) -> dict[str, Any]:
    """An object 4 x 1.5 x 1.6 m (l, h, w), 20 m ahead; 100 pixels wide in the image."""
    usual = {
        "name": name,
        "truncated": 0.0,
        "occluded": 0,
        "alpha": 0.0,
        "bbox": [left, 200.0 - height, left + 100.0, 200.0],
        "dimensions": [4.0, 1.5, 1.6],
        "location": [x, y, 20.0],
        "rotation_y": 0.0,
        "score": 0.9,
    }
    return {**usual, **changes}


def dont_care(left: float) -> dict[str, Any]:
    """A region as the labels write it: an image box and nothing else."""
    nothing = {"dimensions": [-1.0] * 3, "location": [-1000.0] * 3, "rotation_y": -10.0, "alpha": -10.0}
    return car("DontCare", left=left, truncated=-1.0, occluded=-1, **nothing)


def frame(*objects: dict[str, Any]) -> dict[str, Any]:
    """One annotation dict, as infos and detectors write it."""
    return {
        key: np.array([obj[key] for obj in objects]).reshape((-1, WIDTHS[key]) if key in WIDTHS else -1)
        for key in car()
    }


def drives(*objects: dict[str, Any], frames: int = ENOUGH) -> Annos:
    """The same frame again and again."""
    return [frame(*objects) for _ in range(frames)]


def golden_annos(reference: Path) -> tuple[Annos, Annos]:
    """40 labelled frames and their detections, as upstream scored them."""
    stored = json.loads((reference / "kitti_eval" / "annos.json").read_text())
    return as_arrays(stored["gt_annos"]), as_arrays(stored["dt_annos"])


def as_arrays(annos: Annos) -> Annos:
    """Lists as JSON holds them -> arrays as infos hold them."""
    return [{key: np.array(value) for key, value in anno.items()} for anno in annos]
