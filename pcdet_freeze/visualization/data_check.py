"""Pictures of frames with faults: all labelled boxes, and the edge of POINT_CLOUD_RANGE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.checks.frame_survey import FrameSurvey
from pcdet_freeze.visualization.bev import Style, draw, new_figure, picture_name, save
from pcdet_freeze.visualization.scene import Scene

EDGE_COLOR = "#444444"
WIDEST = 1.0
"""how far beyond the range a picture reaches at most, in lengths of the range"""


def draw_checked(
    dataset: Any, frames: Sequence[FrameSurvey], class_names: Sequence[str], folder: Path
) -> list[Path]:
    """Write a PNG of each of ``frames`` of ``dataset``; returns the paths."""
    return [_draw(dataset, frame, class_names, folder) for frame in frames]


def _draw(dataset: Any, frame: FrameSurvey, class_names: Sequence[str], folder: Path) -> Path:
    points = np.asarray(dataset.load_sample(frame.index)["points"])
    boxes = np.zeros((0, 7)) if frame.boxes is None else frame.boxes
    limits = _widened(np.asarray(dataset.point_cloud_range, np.float64), boxes)
    names = list(dict.fromkeys([*class_names, *frame.names.tolist()]))
    numbers = np.array([names.index(name) + 1 for name in frame.names.tolist()], np.int64)
    shown = ((points[:, :2] >= limits[:2]) & (points[:, :2] <= limits[3:5])).all(axis=1)
    style = Style(limits, names)
    figure, (ax,) = new_figure(style)
    title = f"{frame.name}: {len(boxes)} boxes, {int((frame.box_points == 0).sum())} without a point"
    draw(ax, Scene(points[shown], boxes.astype(np.float32), numbers), style, title)
    x_low, y_low, _, x_high, y_high, _ = np.asarray(dataset.point_cloud_range, np.float64)
    corners = np.array([[x_low, y_low], [x_high, y_low], [x_high, y_high], [x_low, y_high], [x_low, y_low]])
    ax.plot(*corners.T, color=EDGE_COLOR, lw=1.0, ls="--")
    return save(figure, folder / picture_name(frame.name))


def _widened(limits: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The range (6,), and as much around it as the centres of ``boxes`` need."""
    wide = limits.copy()
    if len(boxes):
        reach = (limits[3:5] - limits[:2]) * WIDEST
        low, high = boxes[:, :2].min(axis=0) - 1, boxes[:, :2].max(axis=0) + 1
        wide[:2] = np.maximum(np.minimum(limits[:2], low), limits[:2] - reach)
        wide[3:5] = np.minimum(np.maximum(limits[3:5], high), limits[3:5] + reach)
    return wide
