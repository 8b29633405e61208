"""Baselines without a network: the height of a point, and the brightness of a cell.

A trained head should be clearly better than these baselines on the same frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pcdet_freeze.evaluation.lanes import compare_cells, f1
from pcdet_freeze.evaluation.tasks import add_up, ratio
from pcdet_freeze.ops.bev_cells import IGNORE
from pcdet_freeze.ops.lanes import NO_LANE


class HeightClasses:
    """The most frequent class at each height: points (N, 3+) -> labels (N,) int64 by z alone.

    Heights are counted over all frames in bins of ``step`` metres; an empty bin takes the class of the
    nearest non-empty one.
    """

    def __init__(self, classes: int, step: float = 0.1) -> None:
        self.classes, self.step = classes, step
        self._first = 0
        self._best = np.zeros(1, np.int64)

    def fit(self, frames: Iterable[tuple[np.ndarray, np.ndarray]]) -> HeightClasses:
        """Fit to frames of points (N, 3+) in metres and labels (N,); label 255 is ignored."""
        bins, labels = (np.concatenate(parts) for parts in zip(*map(self._labelled, frames), strict=True))
        self._first = int(bins.min())
        table = np.zeros((int(bins.max()) - self._first + 1, self.classes), np.int64)
        np.add.at(table, (bins - self._first, labels), 1)
        seen = np.flatnonzero(table.any(axis=1))
        near = np.abs(np.arange(len(table))[:, None] - seen).argmin(axis=1)
        self._best = table.argmax(axis=1)[seen[near]]
        return self

    def _labelled(self, frame: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        points, labels = frame
        valid = labels != IGNORE
        return self._bins(points[valid]), labels[valid]

    def _bins(self, points: np.ndarray) -> np.ndarray:
        return np.floor(points[:, 2].astype(np.float64) / self.step).astype(np.int64)

    def predict(self, points: np.ndarray) -> np.ndarray:
        """(N,) int64 class of each point."""
        return self._best[np.clip(self._bins(points) - self._first, 0, len(self._best) - 1)]


class BrightCells:
    """Predicts lane 0 in cells with a point of intensity >= ``threshold`` and z <= ``ceiling`` (metres).

    Intensity is column 3 of the points. ``fit`` selects the pair with the best class-agnostic F1.
    """

    def __init__(self, limits: Sequence[float], shape: tuple[int, int]) -> None:
        self.low = np.array(limits[:2], np.float64)
        self.cell = (np.array(limits[3:5], np.float64) - self.low) / np.array(shape[::-1])
        self.shape = shape
        self.threshold, self.ceiling = 1.0, np.inf

    def fit(self, frames: Sequence[tuple[np.ndarray, np.ndarray]], steps: int = 24) -> BrightCells:
        """Fit to frames of points (N, 4+) and lane_map (H, W), over quantiles of intensity and height."""
        cloud = np.concatenate([points[:, 2:4] for points, _ in frames])
        heights = [np.inf, *np.unique(np.quantile(cloud[:, 0], [0.25, 0.5, 0.75]))]
        bright = np.unique(np.quantile(cloud[:, 1], 1 - np.geomspace(0.5, 0.001, steps)))
        pairs = [(threshold, ceiling) for ceiling in heights for threshold in bright]
        self.threshold, self.ceiling = max(pairs, key=lambda pair: self._score(frames, *pair))
        return self

    def _score(
        self, frames: Sequence[tuple[np.ndarray, np.ndarray]], threshold: float, ceiling: float
    ) -> float:
        total = add_up([compare_cells(true, self._cells(p, threshold, ceiling)) for p, true in frames])
        return f1(ratio(total["correct"], total["predicted"]), ratio(total["found"], total["true"]))

    def predict(self, points: np.ndarray) -> np.ndarray:
        """(H, W) uint8: 0 in bright cells, 255 elsewhere."""
        return self._cells(points, self.threshold, self.ceiling)

    def _cells(self, points: np.ndarray, threshold: float, ceiling: float) -> np.ndarray:
        chosen = points[(points[:, 3] >= threshold) & (points[:, 2] <= ceiling)]
        at = np.floor((chosen[:, :2] - self.low) / self.cell).astype(np.int64)
        at = at[((at >= 0) & (at < self.shape[::-1])).all(axis=1)]
        lane_map = np.full(self.shape, NO_LANE, np.uint8)
        lane_map[at[:, 1], at[:, 0]] = 0
        return lane_map
