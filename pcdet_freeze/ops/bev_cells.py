"""Cells of a BEV map over the point cloud range: rows along y, columns along x."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pcdet_freeze.utils.devices import is_accelerator

IGNORE = 255
"""Label of points and cells that are ignored."""


def in_cells(points: Tensor, limits: Sequence[float], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """x and y of each point, (N,) each, in cells from the lower corner of the map; cell k is [k, k + 1).

    Args:
        points: (N, 3+) [sample, x, y, ...], metres.
        limits: [x_min, y_min, z_min, x_max, y_max, z_max], metres.
        shape: rows (H, along y) and columns (W, along x) of the map.
    """
    sizes = [(limits[3 + axis] - limits[axis]) / shape[1 - axis] for axis in (0, 1)]
    x, y = ((points[:, 1 + axis] - limits[axis]) / sizes[axis] for axis in (0, 1))
    return x, y


def cells_of(points: Tensor, limits: Sequence[float], shape: Sequence[int]) -> Tensor:
    """(N,) int64: flat index (sample, row, column) of the cell of each point, clamped to the map.

    Arguments as in ``in_cells``.
    """
    rows, columns = shape
    x, y = in_cells(points, limits, shape)
    column, row = x.floor().long().clamp(0, columns - 1), y.floor().long().clamp(0, rows - 1)
    return (points[:, 0].long() * rows + row) * columns + column


def count_each(index: Tensor, count: int) -> Tensor:
    """(count,) int64: how often each of 0..count - 1 is in ``index`` (N,) int64."""
    if not is_accelerator(index):
        return torch.bincount(index, minlength=count)
    return index.new_zeros(count).index_add_(0, index, torch.ones_like(index))  # bincount waits


@torch.no_grad()
def cell_majority(cells: Tensor, labels: Tensor, classes: int, count: int) -> Tensor:
    """(count,) int64: majority label of the points of each cell; 255 if it has no labelled point.

    Ties are resolved to one of the labels with the maximum count.

    Args:
        cells: (N,) int64 in 0..count - 1, the cell of each point.
        labels: (N,) int64 in 0..classes - 1, or 255 (ignored).
        count: number of cells.
    """
    counted = labels != IGNORE
    if is_accelerator(cells):  # where the host would wait for the number of labelled points
        vote = cells * classes + labels.where(counted, 0)
        votes = cells.new_zeros(count * classes).index_add_(0, vote, counted.long())
    else:
        votes = torch.bincount(cells[counted] * classes + labels[counted], minlength=count * classes)
    most, label = votes.view(count, classes).max(dim=1)
    return torch.where(most > 0, label, IGNORE)
