"""What a picture shows of a frame: the labels of a sample, or the predictions of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pcdet_freeze.ops.lanes import line_points

NO_CLASS = 255
"""label of a point without a class"""


@dataclass
class Scene:
    """One frame in the LiDAR frame: x forward, y left, z up; metres; heading counter-clockwise from x."""

    points: np.ndarray
    """(N, 3 or more): x, y, z, intensity, ..."""
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 7), np.float32))
    """(K, 7 or more): x, y, z, dx, dy, dz, heading"""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,) 1-based classes of the boxes"""
    scores: np.ndarray | None = None
    """(K,) scores of predicted boxes"""
    point_classes: np.ndarray | None = None
    """(N,) classes of the points; 255: none"""
    cells: np.ndarray | None = None
    """(H, W) classes of BEV cells, rows y, columns x"""
    lanes: list[np.ndarray] = field(default_factory=list)
    """lines (n, 2): x, y"""
    lanes_are_points: bool = False
    """whether the points of a line are in no order along it"""

    @property
    def intensity(self) -> np.ndarray | None:
        """Column 3 of the points, if there is one."""
        return self.points[:, 3] if self.points.shape[1] > 3 else None


@dataclass
class Part:
    """One of the scenes that a picture or a view shows of a frame."""

    name: str
    """labels, before, after, or prediction"""
    scene: Scene
    kept: np.ndarray | None = None
    """(K,) bool: which boxes the other checkpoint has, too (see :func:`kept_boxes`)"""

    def above(self, score: float) -> Part:
        """The same without boxes that are not finite, and without predicted ones below ``score``."""
        scene = self.scene
        chosen = np.isfinite(scene.boxes).all(axis=1)
        if scene.scores is not None:
            chosen &= scene.scores >= score
        scores = None if scene.scores is None else scene.scores[chosen]
        fewer = replace(scene, boxes=scene.boxes[chosen], labels=scene.labels[chosen], scores=scores)
        return Part(self.name, fewer, None if self.kept is None else self.kept[chosen])


def truth_of(sample: Mapping[str, Any], limits: Sequence[float] | np.ndarray) -> Scene:
    """The labels of a sample of a data set (see ``datasets/template.py``); what it lacks stays empty.

    Args:
        sample: with ``points`` (N, C) without the sample column, and ``gt_boxes`` (G, 8): class in the last.
        limits: POINT_CLOUD_RANGE, over which a lane map lies.
    """
    scene = Scene(np.asarray(sample["points"]))
    boxes = sample.get("gt_boxes")
    if boxes is not None:
        scene.boxes, scene.labels = boxes[:, :7], boxes[:, -1].astype(np.int64)
    if sample.get("point_labels") is not None:
        scene.point_classes = np.asarray(sample["point_labels"])
    if sample.get("lane_map") is not None:
        scene.lanes, scene.lanes_are_points = line_points(np.asarray(sample["lane_map"]), limits), True
    return scene


def prediction_of(prediction: Mapping[str, Any], points: np.ndarray, score: float = 0.0) -> Scene:
    """The predictions of a model for one frame; tasks that the model does not have stay empty.

    Args:
        prediction: one of the model's ``pred_dicts``; tensors or arrays.
        points: (N, C), the points that the model saw, in their order.
        score: boxes with a lower score are left out.
    """
    found = {key: _numpy(value) for key, value in prediction.items()}
    scene = Scene(points, point_classes=found.get("pred_point_labels"), cells=found.get("pred_bev_labels"))
    if "pred_boxes" in found:
        kept = found["pred_scores"] >= score
        scene.boxes, scene.labels = found["pred_boxes"][kept], found["pred_labels"][kept]
        scene.scores = found["pred_scores"][kept]
    scene.lanes = [_numpy(line) for line in found.get("pred_lanes", [])]
    return scene


def kept_boxes(before: Scene, after: Scene) -> np.ndarray:
    """(K,) bool: which boxes of ``after`` are in ``before``, equal in every bit, with class and score."""
    rows = {row.tobytes() for row in _rows(before)}
    return np.array([row.tobytes() in rows for row in _rows(after)], bool)


def _rows(scene: Scene) -> np.ndarray:
    scores = scene.scores if scene.scores is not None else np.zeros(len(scene.boxes))
    columns = [scene.boxes, scene.labels.reshape(-1, 1), scores.reshape(-1, 1)]
    return np.concatenate([np.asarray(column, np.float64) for column in columns], axis=1)


def _numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
