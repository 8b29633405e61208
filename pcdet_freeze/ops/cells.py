"""Points in the cells of a map: rows along y, columns along x, over the point cloud range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORE = 255
"""Label of a point, and of a cell, that does not count."""


def in_cells(points: Tensor, limits: Sequence[float], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """x and y of each point, (N,) each, in cells from the corner of the map; a cell is [k, k + 1).

    Args:
        points: (N, 3+) [sample, x, y, ...], metres.
        limits: x, y, z minimum, then maximum, metres.
        shape: rows (H) and columns (W) of the map.
    """
    sizes = [(limits[3 + axis] - limits[axis]) / shape[1 - axis] for axis in (0, 1)]
    x, y = ((points[:, 1 + axis] - limits[axis]) / sizes[axis] for axis in (0, 1))
    return x, y


def cells_of(points: Tensor, limits: Sequence[float], shape: Sequence[int]) -> Tensor:
    """(N,) int64: the cell, of the maps of all samples in a row, of each point; the nearest outside.

    Arguments as for ``in_cells``.
    """
    rows, columns = shape
    x, y = in_cells(points, limits, shape)
    column, row = x.floor().long().clamp(0, columns - 1), y.floor().long().clamp(0, rows - 1)
    return (points[:, 0].long() * rows + row) * columns + column


@torch.no_grad()
def cell_majority(cells: Tensor, labels: Tensor, classes: int, count: int) -> Tensor:
    """(count,) int64: the label that most counted points of a cell have, 255 where none counts.

    Where several labels have as many points, it is one of them.

    Args:
        cells: (N,) int64 in 0..count - 1, each point's cell.
        labels: (N,) int64 in 0..classes - 1, or 255: does not count.
        count: how many cells there are.
    """
    counted = labels != IGNORE
    votes = torch.bincount(cells[counted] * classes + labels[counted], minlength=count * classes)
    most, label = votes.view(count, classes).max(dim=1)
    return torch.where(most > 0, label, IGNORE)
