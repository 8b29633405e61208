"""Painted lane points -> lines along the road, from left to right.

The points of one sweep are few and far apart: a spinning sensor crosses a line every metre or so, and dashes
leave gaps. Points are therefore followed along the road's direction, as detections of one object are followed
in time: each point joins the line whose course it continues best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

ANGLES = np.deg2rad(np.arange(-90, 90, 2))
BIN = 0.25
"""metres across the road in which points count as one line when its direction is looked for"""
TOLERANCE, TOLERANCE_A_METRE = 0.5, 0.05
"""metres that a point may lie beside the course of its line, and further ones for each metre of the gap"""
WINDOW, STIFFNESS = 8.0, 4.0
"""the course is that of the last metres; m2 by which it is drawn to the direction of the road"""
BANDWIDTH = 2.0
"""metres along the road over which a line is smoothed"""


def lane_lines(
    points: np.ndarray, cell: float, max_gap: float = 12.0, min_length: float = 4.0
) -> list[np.ndarray]:
    """Lines (n, 2) x, y in metres through points (N, 2+) of lane markings, ordered from left to right.

    Lines run forward (x increases, or y where they are at a right angle to x) and have three points or more.
    Markings across the main direction of the road are left out.

    Args:
        points: (N, 2+) x, y.
        cell: metres; the points of each cell are one point, their mean.
        max_gap: metres along the road between two points of a line.
        min_length: metres from the first to the last point of a line.
    """
    nodes = cell_means(np.asarray(points, np.float64)[:, :2], cell)
    if len(nodes) < 3:
        return []
    forward = road_direction(nodes)
    axes = np.array([forward, [-forward[1], forward[0]]])  # along the road, to the left
    tracks = _followed(nodes @ axes.T, max_gap)
    rows = [np.array(track.rows) for track in tracks]
    long = [row for row in rows if len(row) >= 3 and row[-1, 0] - row[0, 0] >= min_length]
    ordered = sorted(long, key=lambda row: -float(row[:, 1].mean()))
    return [_smooth(row) @ axes for row in ordered]


def cell_means(points: np.ndarray, cell: float) -> np.ndarray:
    """(M, 2) mean of the points (N, 2) in each cell of ``cell`` metres that has one or more."""
    _, where = np.unique(np.floor(points / cell), axis=0, return_inverse=True)
    counts = np.bincount(where.reshape(-1))
    sums = [np.bincount(where.reshape(-1), weights=points[:, axis]) for axis in (0, 1)]
    return np.stack(sums, axis=1) / counts[:, None]


def road_direction(nodes: np.ndarray) -> np.ndarray:
    """(2,) unit vector along which points (M, 2) lie on the fewest straight lines."""

    def sharpness(angle: float) -> float:
        across = nodes @ np.array([-np.sin(angle), np.cos(angle)])
        _, counts = np.unique(np.floor(across / BIN), return_counts=True)
        return float((counts**2).sum())

    # angles near the vehicle's own direction come first, and win a tie
    best = max(sorted(ANGLES, key=abs), key=sharpness)
    return np.array([np.cos(best), np.sin(best)])


@dataclass
class _Track:
    """A line so far: rows (along, across the road), by increasing distance along it."""

    rows: list[np.ndarray] = field(default_factory=list)

    def expected(self, along: float) -> float:
        """Where the line crosses ``along``, if it keeps its course."""
        recent = np.array([row for row in self.rows[-20:] if self.rows[-1][0] - row[0] <= WINDOW])
        mean = recent.mean(axis=0)
        apart = recent - mean
        slope = (apart[:, 0] @ apart[:, 1]) / (apart[:, 0] @ apart[:, 0] + STIFFNESS)
        return float(mean[1] + slope * (along - mean[0]))


def _followed(nodes: np.ndarray, max_gap: float) -> list[_Track]:
    """Tracks through nodes (M, 2) along and across the road, each node in one of them."""
    tracks: list[_Track] = []
    for node in nodes[np.lexsort((nodes[:, 1], nodes[:, 0]))]:
        open_tracks = [track for track in tracks if node[0] - track.rows[-1][0] <= max_gap]
        near = min(open_tracks, key=lambda track: _beside(track, node), default=None)
        if near is None or _beside(near, node) > 1:
            near = _Track()
            tracks.append(near)
        near.rows.append(node)
    return tracks


def _beside(track: _Track, node: np.ndarray) -> float:
    """Distance of a node from the course of a track, in tolerances."""
    allowed = TOLERANCE + TOLERANCE_A_METRE * (node[0] - track.rows[-1][0])
    return abs(float(node[1]) - track.expected(node[0])) / allowed


def _smooth(rows: np.ndarray) -> np.ndarray:
    """Rows (n, 2) with the second column smoothed over BANDWIDTH (local linear regression)."""
    apart = rows[None, :, 0] - rows[:, None, 0]
    weight = np.exp(-0.5 * (apart / BANDWIDTH) ** 2)
    weight /= weight.sum(axis=1, keepdims=True)
    middle, height = (weight * apart).sum(axis=1), weight @ rows[:, 1]
    spread = (weight * apart**2).sum(axis=1) - middle**2
    slope = ((weight * apart) @ rows[:, 1] - middle * height) / (spread + 0.25)
    smooth = np.column_stack([rows[:, 0], height - slope * middle])
    step = np.concatenate([[True], np.diff(smooth[:, 0]) > 1e-3])
    return smooth[step]


def drawn_first(lines: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """The ``most`` longest of ``lines``, in their order."""
    lengths = [float(np.hypot(*np.diff(line, axis=0).T).sum()) for line in lines]
    kept = set(sorted(range(len(lines)), key=lambda number: -lengths[number])[:most])
    return [line for number, line in enumerate(lines) if number in kept]
