"""A BEV raster under a change of the scene. Rows are y, columns x, over the point cloud range."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.datasets.frames import IGNORE


def flip_raster(raster: np.ndarray, axis: str, limits: np.ndarray) -> np.ndarray:
    """``raster`` (H, W) mirrored at the x or y axis; exact where the range is symmetric about that axis."""
    dim, low, high = (0, limits[1], limits[4]) if axis == "x" else (1, limits[0], limits[3])
    if low == -high:
        return np.flip(raster, dim).copy()
    mirror = np.diag([1.0, -1.0] if axis == "x" else [-1.0, 1.0])
    return resample_raster(raster, limits, mirror)


def mirror_numbers(lane_map: np.ndarray) -> np.ndarray:
    """``lane_map`` (H, W) with its lines numbered from the other side; 255 stays.

    Lines are numbered from left to right. What turns left into right turns the order round, within the
    numbers that occur: of lines 0, 1, 2 the first becomes the last.
    """
    there = lane_map != IGNORE
    if not there.any():
        return lane_map
    ends = int(lane_map[there].min()) + int(lane_map[there].max())
    return np.where(there, ends - lane_map.astype(np.int64), IGNORE).astype(lane_map.dtype)


def resample_raster(
    raster: np.ndarray, limits: np.ndarray, back: np.ndarray, shift: np.ndarray | None = None
) -> np.ndarray:
    """Each new cell takes the old cell that its centre came from; 255 where that lies outside.

    raster: (H, W); limits: (6,) metres; back: (2, 2) for row vectors, ``new @ back - shift = old`` (x, y,
    metres; no shift: zero).
    """
    low, high = limits[:2].astype(np.float64), limits[3:5].astype(np.float64)
    size = np.array(raster.shape[::-1])
    cell = (high - low) / size
    xs, ys = (low[i] + (np.arange(size[i]) + 0.5) * cell[i] for i in (0, 1))
    new = np.stack(np.meshgrid(xs, ys), axis=-1)
    came_from = new @ np.asarray(back, np.float64) - (0.0 if shift is None else shift)
    column, row = (np.floor((came_from[..., i] - low[i]) / cell[i]).astype(np.int64) for i in (0, 1))
    known = (column >= 0) & (column < size[0]) & (row >= 0) & (row < size[1])
    place = np.where(known, row * size[0] + column, 0)
    return np.where(known, raster.take(place), raster.dtype.type(IGNORE))
