"""Lane lines as cells of a BEV raster over the point cloud range: rows follow y, columns follow x."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NO_LANE = 255
"""Value of cells without a line; other values are the number of the line, 0 is the leftmost."""
ROUNDING = 1e-9
"""relative error of a distance; such distances count as equal"""


def line_points(lane_map: np.ndarray, limits: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Points on the centre of each line: a list of (M, 2) x, y in metres, one array per number in the map.

    lane_map: (H, W) integer; limits: (6,) or longer is [x_min, y_min, z_min, x_max, y_max, z_max].
    Each cell of a line gives one point: the middle of the shorter of its two runs of line cells, along x and
    along y. A line may therefore be several cells wide and have any direction.
    """
    low, high = np.array(limits[:2], np.float64), np.array(limits[3:5], np.float64)
    cell = (high - low) / np.array(lane_map.shape[::-1])
    lines = []
    for number in np.unique(lane_map[lane_map != NO_LANE]):
        columns_and_rows = _middles(lane_map == number)
        lines.append(low + (columns_and_rows + 0.5) * cell)
    return lines


def _middles(cells: np.ndarray) -> np.ndarray:
    """(M, 2) fractional column and row of the middle of the line at each True cell of (H, W)."""
    (row, tall), (column, wide) = _runs(cells), [part.T for part in _runs(cells.T)]
    rows, columns = np.nonzero(cells)
    upright = (tall < wide)[cells]  # the shorter run crosses the line
    return np.column_stack([np.where(upright, columns, column[cells]), np.where(upright, row[cells], rows)])


def _runs(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and length of the run along axis 0 that contains each True cell."""
    index = np.arange(len(cells))[:, None]
    first = np.maximum.accumulate(np.where(cells, 0, index + 1), axis=0)
    last = np.minimum.accumulate(np.where(cells, len(cells) - 1, index - 1)[::-1], axis=0)[::-1]
    return (first + last) / 2, last - first + 1


def along(polyline: np.ndarray, step: float) -> np.ndarray:
    """Sample a polyline (n, 2) at points (M, 2), at most ``step`` metres from each other, ends included."""
    corners = np.asarray(polyline, np.float64)[:, :2]
    if len(corners) < 2:
        return corners
    at = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
    where = np.linspace(0.0, at[-1], max(2, 1 + int(np.ceil(at[-1] / step))))
    return np.column_stack([np.interp(where, at, corners[:, axis]) for axis in (0, 1)])


def draw_lines(
    polylines: Sequence[np.ndarray],
    limits: Sequence[float] | np.ndarray,
    shape: tuple[int, int],
    width: float = 0.0,
) -> np.ndarray:
    """Lane map (H, W) uint8 of ``polylines``, each (n, 2+) x, y in metres; line k gets the number k.

    A cell belongs to a line if the distance of its centre is less than half of ``width`` metres, or half of a
    cell's edge if that is larger. Cells are half-open: of two cells at exactly that distance the one with the
    larger y belongs to it, or with the larger x for a line along y; so a line on a border has one of both.
    The last of several lines wins. limits as in :func:`line_points`.

    Raises:
        ValueError: more than 255 lines.
    """
    if len(polylines) > NO_LANE:
        raise ValueError(f"a lane map holds at most {NO_LANE} lines; got {len(polylines)}")
    low, high = np.array(limits[:2], np.float64), np.array(limits[3:5], np.float64)
    size = np.array(shape[::-1])
    cell = (high - low) / size
    reach = max(width, cell.max()) / 2
    around = np.arange(-np.ceil(reach / cell.min()), np.ceil(reach / cell.min()) + 1)
    offsets = np.stack(np.meshgrid(around, around), axis=-1).reshape(-1, 2)
    lane_map = np.full(shape, NO_LANE, np.uint8)
    for number, polyline in enumerate(polylines):
        points = (along(polyline, cell.min() / 4) - low) / cell
        cells = np.floor(points)[:, None] + offsets
        near = _is_near((cells + 0.5) * cell, points * cell, reach)
        columns, rows = cells[near & ((cells >= 0) & (cells < size)).all(axis=-1)].astype(np.int64).T
        lane_map[rows, columns] = number
    return lane_map


def _is_near(centres: np.ndarray, points: np.ndarray, reach: float) -> np.ndarray:
    """(M, K) bool: which ``centres[m]`` (K, 2) lie within ``reach`` of the line from point m to the next."""
    begin, along_line = points[:, None], np.diff(points, axis=0, append=points[-1:])[:, None]
    squared = np.maximum((along_line**2).sum(axis=-1), np.finfo(float).tiny)
    part = np.clip(((centres - begin) * along_line).sum(axis=-1) / squared, 0, 1)
    x, y = (centres - begin - part[..., None] * along_line).transpose(2, 0, 1)
    rest, rounding = np.hypot(x, y) - reach, ROUNDING * reach
    above = (y > rounding) | ((np.abs(y) <= rounding) & (x > 0))
    return (rest < -rounding) | ((rest <= rounding) & above)
