"""Seconds of an evaluation without the network: KITTI AP of stored detections, post-processing of a frame."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState

from pcdet_freeze.bench.timing import Spread
from pcdet_freeze.evaluation.kitti import evaluate
from pcdet_freeze.models.post_processing import PostProcessingSettings, post_process
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.sections import read_section

Row = dict[str, Any]
Anno = dict[str, np.ndarray]
FRAMES = 3769
"""frames of KITTI's validation split"""
ANCHORS = 321408
"""anchors of KITTI's grid with three classes"""
CANDIDATES = 2000
"""anchors above the score threshold in a frame"""
SIZES = {
    "Car": (3.9, 1.5, 1.6),
    "Pedestrian": (0.8, 1.7, 0.6),
    "Cyclist": (1.8, 1.7, 0.6),
    "Van": (5.0, 2.0, 1.9),
    "DontCare": (-1.0, -1.0, -1.0),
}
"""length, height, width in metres"""
CLASSES = ["Car", "Pedestrian", "Cyclist"]


def measure_evaluation(post_processing: Any, rounds: int) -> list[Row]:
    """Rows with the wall seconds of each: AP of FRAMES frames, the first call and later ones; a frame's
    post-processing with ``post_processing`` (MODEL.POST_PROCESSING), from ANCHORS scores and boxes."""
    truth, found = stored_frames(FRAMES)
    first, *later = [_seconds(lambda: evaluate(truth, found, CLASSES)) for _ in range(1 + rounds)]
    settings, faults = read_section(PostProcessingSettings, post_processing, "MODEL.POST_PROCESSING")
    raise_faults(faults)
    assert settings is not None  # there were no faults
    batch = raw_boxes()
    post_process(batch, settings)
    frames = [_seconds(lambda: post_process(batch, settings)) for _ in range(10 * rounds)]
    labels, detections = (sum(len(anno["name"]) for anno in annos) for annos in (truth, found))
    what = f"AP of {FRAMES} frames, {labels} labels, {detections} detections"
    return [
        _row(f"{what}, first call", [first]),
        _row(f"{what}, later", later),
        _row(f"post-processing of a frame, {ANCHORS} anchors, {CANDIDATES} candidates", frames),
    ]


def stored_frames(count: int, seed: int = 0) -> tuple[list[Anno], list[Anno]]:
    """Labels and detections of ``count`` random frames as KITTI annotation dicts.

    A frame has up to 11 labels; detections are displaced labels, and 5 to 29 false ones.
    """
    rng = RandomState(seed)
    pairs = [_frame(rng) for _ in range(count)]
    return [truth for truth, _ in pairs], [found for _, found in pairs]


def _frame(rng: RandomState) -> tuple[Anno, Anno]:
    count, false = rng.randint(2, 12), rng.randint(5, 30)
    names = rng.choice(list(SIZES), count, p=[0.55, 0.15, 0.08, 0.07, 0.15])
    location, turn = _places(rng, count), rng.uniform(-np.pi, np.pi, count)
    truth = _objects(names, location, turn)
    truth |= {"truncated": rng.uniform(0, 0.3, count), "occluded": rng.randint(0, 3, count)}
    real = names != "DontCare"
    said = np.concatenate([np.where(names[real] == "Van", "Car", names[real]), rng.choice(CLASSES, false)])
    places = np.concatenate([location[real] + rng.normal(0, 0.15, (real.sum(), 3)), _places(rng, false)])
    turns = np.concatenate([turn[real] + rng.normal(0, 0.1, real.sum()), rng.uniform(-3, 3, false)])
    scores = np.concatenate([rng.uniform(0.3, 1, real.sum()), rng.uniform(0.1, 0.6, false)])
    return truth, {**_objects(said, places, turns), "score": scores}


def _places(rng: RandomState, count: int) -> np.ndarray:
    """(count, 3) positions in the camera frame, metres: x right, y down, z forward."""
    return rng.uniform((-20, 1.5, 5), (20, 2, 60), (count, 3))


def _objects(names: np.ndarray, location: np.ndarray, turn: np.ndarray) -> Anno:
    """Columns of an annotation dict; image boxes as of a pinhole camera with 700 pixels of focal length."""
    column, half = location[:, 0] / location[:, 2] * 700 + 600, 560 / location[:, 2]
    low = np.full(len(names), 170.0)
    return {
        "name": names,
        "alpha": turn - np.arctan2(location[:, 0], location[:, 2]),
        "bbox": np.stack([column - half, low, column + half, low + half], 1),
        "dimensions": np.array([SIZES[name] for name in names]).reshape(-1, 3),
        "location": location,
        "rotation_y": turn,
    }


def raw_boxes(seed: int = 0) -> dict[str, Any]:
    """A batch of one frame as the anchor head leaves it: logits and boxes of ANCHORS anchors."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, ANCHORS, 3, generator=draw) - 7
    chosen = torch.randperm(ANCHORS, generator=draw)[:CANDIDATES]
    columns = torch.randint(3, (CANDIDATES,), generator=draw)
    logits[0, chosen, columns] = torch.rand(CANDIDATES, generator=draw) * 4 - 2
    low = torch.tensor([0.0, -40.0, -2.0, 3.7, 1.6, 1.5, 0.0])
    high = torch.tensor([70.0, 40.0, -1.0, 4.2, 1.8, 1.7, 6.28])
    boxes = low + (high - low) * torch.rand(1, ANCHORS, 7, generator=draw)
    labels = torch.randint(1, 4, (1, 16, 1), generator=draw).float()
    truth = torch.cat([boxes[:, :16], labels], dim=2)
    return {"batch_size": 1, "batch_cls_preds": logits, "batch_box_preds": boxes, "gt_boxes": truth}


def _seconds(run: Any) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _row(name: str, seconds: list[float]) -> Row:
    spread = Spread.of(seconds)
    return {
        "variant": name,
        "seconds": spread.median,
        "seconds_quartiles": [spread.low, spread.high],
        "rounds": len(seconds),
    }
