"""NMS with the rotated overlap of OpenPCDet, which is not the area that two rectangles share.

There a corner counts as inside the other box up to 1e-2 m beyond its edges. Boxes of street size differ by
less than 9e-4 of IoU from the exact area, which is what we compute. The thin boxes that random weights
predict differ by more: their detections are equal only with that margin. Both are shown by the tests.
"""

from __future__ import annotations

import numpy as np
import torch

MARGIN = 1e-2


def nms_with_margin(boxes: torch.Tensor, scores: torch.Tensor, thresh: float, most: int) -> torch.Tensor:
    """Indices of the ``most`` best boxes (N, 7) that no better kept box overlaps by more than ``thresh``."""
    order = scores.sort(descending=True, stable=True).indices
    rows = boxes[order].double().numpy()
    radius = np.hypot(rows[:, 3], rows[:, 4]) / 2 + 2 * MARGIN
    kept: list[int] = []
    for k, row in enumerate(rows):
        rivals = np.array(kept, dtype=np.int64)
        apart = np.hypot(*(rows[rivals, :2] - row[:2]).T)
        near = rivals[apart < radius[rivals] + radius[k]]
        if not any(iou_with_margin(row, rows[rival]) > thresh for rival in near):
            kept.append(k)
            if len(kept) == most:
                break
    return order[kept]


def iou_with_margin(a: np.ndarray, b: np.ndarray) -> float:
    """BEV IoU of two boxes [x, y, z, dx, dy, dz, heading]."""
    shared = shared_area(a, b)
    return shared / max(a[3] * a[4] + b[3] * b[4] - shared, 1e-8)


def shared_area(a: np.ndarray, b: np.ndarray) -> float:
    """Area of the polygon through crossings of edges and corners of each box in the other, widened, one."""
    mine, other = corners(a), corners(b)
    points = np.concatenate([crossings(mine, other), mine[holds(b, mine)], other[holds(a, other)]])
    if len(points) < 3:
        return 0.0
    spokes = points - points.mean(axis=0)
    spokes = spokes[np.argsort(np.arctan2(spokes[:, 1], spokes[:, 0]))]
    x, y = spokes.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)


def corners(box: np.ndarray) -> np.ndarray:
    """(4, 2), around the box."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * box[3:5] / 2
    return local @ np.array([[cos, sin], [-sin, cos]]) + box[:2]


def holds(box: np.ndarray, points: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.abs((points - box[:2]) @ np.array([[cos, -sin], [sin, cos]]))
    return (local < box[3:5] / 2 + MARGIN).all(axis=1)


def crossings(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Points where edges of one polygon cross edges of the other, (K, 2)."""
    along, across = (np.roll(p, -1, axis=0) - p for p in (a, b))
    between = b[None] - a[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = cross(along[:, None], across[None])
        t, u = cross(between, across[None]) / scale, cross(between, along[:, None]) / scale
        i, _ = np.nonzero((t > 0) & (t < 1) & (u > 0) & (u < 1))
        met = t[(t > 0) & (t < 1) & (u > 0) & (u < 1)]
    return a[i] + met[:, None] * along[i]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
