"""Labels of a scene: semantic classes of points, lane lines as polylines and as a raster.

| label | class | content |
| --- | --- | --- |
| 0 | road | asphalt without paint, including side roads and parking bays |
| 1 | sidewalk | pavement and kerb |
| 2 | terrain | all other ground |
| 3 | building | |
| 4 | pole | lamp posts, traffic signs |
| 5 | vegetation | crowns, trunks, bushes, hedges |
| 6 | car | all parts of a car |
| 7 | pedestrian | |
| 8 | cyclist | rider and bicycle |
| 9 | clutter | containers, bins, walls, pillars, trailers; similar in size to a car or a person |
| 10 | lane_marking | painted lane lines |
| 255 | (ignore) | stray points |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.synthetic.shapes import Ground
from pcdet_freeze.ops.lanes import NO_LANE

CLASSES = (
    *("road", "sidewalk", "terrain", "building", "pole", "vegetation"),
    *("car", "pedestrian", "cyclist", "clutter", "lane_marking"),
)
LABEL = {name: number for number, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class LaneLine:
    """A painted line at a lateral ``offset`` in metres from the centre line of the road (positive: left).

    ``period`` and ``dash`` are lengths in metres along x (equal: a solid line), ``phase`` is the start of a
    dash. ``wear`` in [0, 1) is the noise threshold below which the paint is worn off.
    """

    offset: float
    width: float
    reflectivity: float
    wear: float
    period: float
    dash: float
    phase: float

    def row(self) -> tuple[float, ...]:
        """The line as a row of the table of the kernels (columns ``lidar_returns.LINE_OFFSET`` ...)."""
        painted = (self.reflectivity, self.wear, self.period, self.dash, self.phase)
        return (self.offset, self.width, *painted)

    def y(self, ground: Ground, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """y of the line at each ``x``, metres."""
        slope = ground.y1 + x * (ground.y2 + x * ground.y3 / 2)
        centre = ground.y0 + x * (ground.y1 + x * (ground.y2 / 2 + x * ground.y3 / 6))
        return centre + self.offset * np.sqrt(1 + slope * slope)


@dataclass(frozen=True)
class LaneGrid:
    """BEV raster over x_min, y_min, x_max, y_max (m): rows follow increasing y, columns x; square cells."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float
    cell: float

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return round((self.y_max - self.y_min) / self.cell), round((self.x_max - self.x_min) / self.cell)

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cell centres: x (W,), y (H,)."""
        rows, columns = self.shape
        return (
            self.x_min + self.cell * (np.arange(columns) + 0.5),
            self.y_min + self.cell * (np.arange(rows) + 0.5),
        )


def lines_in_grid(lines: list[LaneLine], ground: Ground, grid: LaneGrid) -> list[LaneLine]:
    """The lines that run inside the grid for at least 1 m, from left to right: line k has index k."""
    xs, _ = grid.centres()
    inside = [((y := line.y(ground, xs)) >= grid.y_min) & (y < grid.y_max) for line in lines]
    kept = [line for line, cells in zip(lines, inside, strict=True) if cells.sum() * grid.cell >= 1.0]
    return sorted(kept, key=lambda line: -line.offset)


def lane_polylines(
    lines: list[LaneLine], ground: Ground, grid: LaneGrid, step: float = 0.5
) -> list[NDArray[np.float64]]:
    """Each line of the grid as (P, 3) points x, y, z in metres, with x increasing by ``step``.

    The position in the list is the lane index. A dashed line is one polyline, as in lane benchmarks.
    """
    x = np.arange(grid.x_min + grid.cell / 2, grid.x_max, step)
    polylines = []
    for line in lines_in_grid(lines, ground, grid):
        y = line.y(ground, x)
        inside = (y >= grid.y_min) & (y < grid.y_max)
        z = [ground.height(float(a), float(b)) for a, b in zip(x[inside], y[inside], strict=True)]
        polylines.append(np.column_stack([x[inside], y[inside], z]))
    return polylines


def lane_raster(lines: list[LaneLine], ground: Ground, grid: LaneGrid, width: float) -> NDArray[np.uint8]:
    """Lane map (H, W) uint8: index of the line (left to right, as in :func:`lines_in_grid`), else NO_LANE.

    A cell belongs to a line if its centre is at most ``max(width, cell) / 2`` from the line.
    """
    xs, ys = grid.centres()
    raster = np.full(grid.shape, NO_LANE, np.uint8)
    slope = ground.y1 + xs * (ground.y2 + xs * ground.y3 / 2)
    reach = 0.5 * max(width, grid.cell) * np.sqrt(1 + slope * slope)
    for number, line in enumerate(lines_in_grid(lines, ground, grid)):
        distance = np.abs(ys[:, None] - line.y(ground, xs)[None, :])
        raster[distance <= reach[None, :]] = number
    return raster


def occlusion_level(occlusion: float, num_points: int, min_points: int) -> int:
    """KITTI's ``occluded`` level: 0 below 25 % occlusion, 1 below 75 %, 2 otherwise.

    Objects with fewer than ``min_points`` points get level 3, which the KITTI metric ignores at every
    difficulty: neither the object nor a detection of it counts.
    """
    if num_points < min_points:
        return 3
    return 0 if occlusion < 0.25 else 1 if occlusion < 0.75 else 2


def wrap(angle: float) -> float:
    """The angle in [-pi, pi)."""
    return angle - 2 * math.pi * math.floor(angle / (2 * math.pi) + 0.5)
