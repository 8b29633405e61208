"""Boxes in the LiDAR frame: x forward, y left, z up, heading counter-clockwise from x.

A box is [x, y, z, dx, dy, dz, heading]: centre and full sizes in metres, heading in radians. Columns after
the seventh (velocity, class) are ignored. Functions take numpy arrays or torch tensors and return the same
type. Only limit_period is differentiable. Wrong shapes raise a DataError.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pcdet_freeze.errors import DataError
from pcdet_freeze.ops._arrays import (
    Array,
    check_columns,
    check_same_kind,
    floating_like,
    to_float64,
    to_tensor,
)
from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.devices import is_accelerator
from pcdet_freeze.utils.signals.interrupts import uninterrupted

# lower face, then upper face; in each: front-left, front-right, rear-right, rear-left
_CORNER_SIGNS = (
    (1, 1, -1), (1, -1, -1), (-1, -1, -1), (-1, 1, -1),
    (1, 1, 1), (1, -1, 1), (-1, -1, 1), (-1, 1, 1),
)  # fmt: skip
_CHUNK = 1 << 23  # number of point-box pairs that the torch path processes at once


def limit_period(val: Any, offset: float = 0.5, period: float = math.pi) -> Any:
    """Shift ``val`` by whole periods into [-offset * period, (1 - offset) * period).

    Args:
        val: scalar, array or tensor of any shape, radians.
        offset: start of the interval: 0.5 is symmetric about 0, 0 starts at 0.
        period: length of the interval, radians.
    """
    floor = torch.floor if isinstance(val, torch.Tensor) else np.floor
    return val - floor(val / period + offset) * period


def rotate_points_along_z(points: Array, angle: Array) -> Array:
    """Rotate point sets about the z axis, counter-clockwise seen from above.

    Args:
        points: (B, N, 3 + C); columns after the third are unchanged.
        angle: (B,) radians.

    Returns:
        (B, N, 3 + C) with the type and dtype of ``points``.
    """
    if points.ndim != 3 or points.shape[-1] < 3 or angle.shape != points.shape[:1]:
        raise DataError(
            "rotate_points_along_z needs points (B, N, 3 or more) and angle (B,); got "
            f"{tuple(points.shape)} and {tuple(angle.shape)}"
        )
    moved, turn = to_tensor(points).clone(), to_tensor(angle)
    cos, sin = (f(turn).to(moved)[:, None] for f in (torch.cos, torch.sin))
    x, y = moved[..., 0].clone(), moved[..., 1].clone()
    moved[..., 0] = x * cos - y * sin
    moved[..., 1] = x * sin + y * cos
    return floating_like(moved, points)


def boxes_to_corners_3d(boxes: Array) -> Array:
    """Corners of boxes (N, 7) -> (N, 8, 3), metres.

    The lower four come first. The order of each face is front-left, front-right, rear-right, rear-left
    (clockwise seen from above); corner i + 4 is above corner i.
    """
    check_columns("boxes", boxes, 7)
    box = to_tensor(boxes)
    signs = torch.tensor(_CORNER_SIGNS, dtype=box.dtype, device=box.device) / 2
    local = box[:, None, 3:6] * signs[None]
    corners = rotate_points_along_z(local, box[:, 6]) + box[:, None, :3]
    return floating_like(corners, boxes)


def nearest_bev_boxes(boxes: Array) -> Array:
    """Boxes (N, 7) -> (N, 4) [x1, y1, x2, y2]: heading rounded to the nearest multiple of 90 degrees."""
    check_columns("boxes", boxes, 7)
    box = to_tensor(boxes)
    upright = limit_period(box[:, 6:7], 0.5, math.pi).abs() < math.pi / 4
    sizes = torch.where(upright, box[:, [3, 4]], box[:, [4, 3]])
    corners = torch.cat([box[:, :2] - sizes / 2, box[:, :2] + sizes / 2], dim=1)
    return floating_like(corners, boxes)


def boxes3d_nearest_bev_iou(boxes_a: Array, boxes_b: Array) -> Array:
    """IoU of the nearest axis-aligned BEV boxes: (N, 7), (M, 7) -> (N, M), in the dtype of ``boxes_a``.

    Used for anchor assignment (SECOND, Sensors 2018): fast, but insensitive to small changes of heading.
    """
    check_same_kind("boxes_a", boxes_a, "boxes_b", boxes_b)
    a, b = to_tensor(nearest_bev_boxes(boxes_a)), to_tensor(nearest_bev_boxes(boxes_b))
    width = torch.minimum(a[:, None, 2], b[None, :, 2]) - torch.maximum(a[:, None, 0], b[None, :, 0])
    length = torch.minimum(a[:, None, 3], b[None, :, 3]) - torch.maximum(a[:, None, 1], b[None, :, 1])
    inter = width.clamp(min=0) * length.clamp(min=0)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    union = (area_a[:, None] + area_b[None] - inter).clamp(min=1e-6)
    return floating_like(inter / union, boxes_a)


def mask_boxes_outside_range(
    boxes: np.ndarray,
    limit_range: Any,
    min_num_corners: int = 1,
    use_center: bool = False,
) -> np.ndarray:
    """Mask (N,) bool of the boxes inside the range.

    Args:
        boxes: (N, 7) numpy.
        limit_range: [x1, y1, z1, x2, y2, z2] metres, both bounds inclusive.
        min_num_corners: minimum number of the 8 corners that must be inside in x and y.
        use_center: test the centre in x, y and z instead.
    """
    check_columns("boxes", boxes, 7)
    limit = np.asarray(limit_range)
    if use_center:
        center = boxes[:, :3]
        return np.asarray(((center >= limit[:3]) & (center <= limit[3:6])).all(axis=1))
    corners = boxes_to_corners_3d(boxes)[:, :, :2]
    inside = ((corners >= limit[:2]) & (corners <= limit[3:5])).all(axis=2)
    return np.asarray(inside.sum(axis=1) >= min_num_corners)


def points_in_boxes(points: Array, boxes: Array, margin: float = 1e-5) -> Array:
    """Index of the first box that contains each point: (N, 3+), (M, 7) -> (N,) int64, -1 for none.

    ``margin`` (metres) enlarges the boxes in x and y; bounds in z are inclusive, without margin. Points and
    boxes with NaN never match.
    """
    _check_points_and_boxes(points, boxes)
    if isinstance(points, torch.Tensor) and is_accelerator(points):
        return _first_box_torch(points, boxes, margin)
    first = _first_box(to_float64(points, 3), to_float64(boxes, 7), margin)
    return torch.from_numpy(first) if isinstance(points, torch.Tensor) else first


def points_in_boxes_mask(points: Array, boxes: Array, margin: float = 1e-2) -> Array:
    """Points inside each box: (N, 3+), (M, 7) -> (M, N) bool. ``margin`` as in points_in_boxes."""
    _check_points_and_boxes(points, boxes)
    if isinstance(points, torch.Tensor) and is_accelerator(points):
        return _inside_torch(points.double(), boxes.double(), margin)
    mask = _inside_all(to_float64(points, 3), to_float64(boxes, 7), margin)
    return torch.from_numpy(mask) if isinstance(points, torch.Tensor) else mask


def _check_points_and_boxes(points: Any, boxes: Any) -> None:
    check_columns("points", points, 3)
    check_columns("boxes", boxes, 7)
    check_same_kind("points", points, "boxes", boxes)


@compiled
def _inside(px, py, pz, box, cos, sin, margin):  # type: ignore[no-untyped-def]
    if not abs(pz - box[2]) <= box[5] / 2:
        return False
    dx, dy = px - box[0], py - box[1]
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    return abs(along) < box[3] / 2 + margin and abs(across) < box[4] / 2 + margin


@uninterrupted
@compiled
def _inside_all(points, boxes, margin):  # type: ignore[no-untyped-def]
    mask = np.zeros((len(boxes), len(points)), dtype=np.bool_)
    for m in range(len(boxes)):
        cos, sin = math.cos(boxes[m, 6]), math.sin(boxes[m, 6])
        for n in range(len(points)):
            mask[m, n] = _inside(points[n, 0], points[n, 1], points[n, 2], boxes[m], cos, sin, margin)
    return mask


@uninterrupted
@compiled
def _first_box(points, boxes, margin):  # type: ignore[no-untyped-def]
    first = np.full(len(points), -1, dtype=np.int64)
    for m in range(len(boxes) - 1, -1, -1):  # reverse order, so that the first box wins
        cos, sin = math.cos(boxes[m, 6]), math.sin(boxes[m, 6])
        for n in range(len(points)):
            if _inside(points[n, 0], points[n, 1], points[n, 2], boxes[m], cos, sin, margin):
                first[n] = m
    return first


def _inside_torch(points: torch.Tensor, boxes: torch.Tensor, margin: float) -> torch.Tensor:
    """(N, 3+), (M, 7) float64 -> (M, N) bool, the arithmetic of ``_inside``."""
    delta = points[None, :, :3] - boxes[:, None, :3]
    cos, sin = torch.cos(boxes[:, 6:7]), torch.sin(boxes[:, 6:7])
    along = delta[..., 0] * cos + delta[..., 1] * sin
    across = delta[..., 1] * cos - delta[..., 0] * sin
    half = boxes[:, 3:6] / 2
    flat = (along.abs() < half[:, :1] + margin) & (across.abs() < half[:, 1:2] + margin)
    return flat & (delta[..., 2].abs() <= half[:, 2:])


def _first_box_torch(points: torch.Tensor, boxes: torch.Tensor, margin: float) -> torch.Tensor:
    count = len(boxes)
    if count == 0 or len(points) == 0:
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    rank = torch.arange(count, 0, -1, device=points.device)  # the first box has the highest rank
    found = []
    for chunk in points.split(max(1, _CHUNK // count)):
        inside = _inside_torch(chunk.double(), boxes.double(), margin)
        best = (inside * rank[:, None]).amax(dim=0)
        found.append(torch.where(best > 0, count - best, -1))
    return torch.cat(found)
