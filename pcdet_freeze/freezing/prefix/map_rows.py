"""BEV maps as rows of a table: only the cells that a pillar can reach have rows of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

DENSE = 0.8
"""share of reached cells above which a layer is computed as a whole"""
STEP = 8
"""of how many rows and columns one is looked at first"""


@dataclass
class Rows:
    """A map of one sample as rows of a table; cells of one value share a row."""

    table: Tensor
    """(R, C); row 0 is zero"""
    index: Tensor
    """(H + 2, W + 2) int64: row of each cell, with a border of zeros"""
    mask: Tensor
    """(1, 1, H, W) float32: 1 in reached cells"""

    def dense(self) -> Tensor:
        """(1, C, H, W), channels-last."""
        height, width = self.mask.shape[2:]
        made = self.table.new_empty(1, height, width, self.table.shape[1]).permute(0, 3, 1, 2)
        self.write(made)
        return made

    def write(self, into: Tensor) -> None:
        """Write the whole map into ``into`` (1, C, H, W), which is channels-last."""
        place = into.permute(0, 2, 3, 1).view(-1, self.table.shape[1])
        torch.index_select(self.table, 0, self.index[1:-1, 1:-1].reshape(-1), out=place)


def samples_of(value: Tensor) -> list[Rows | None]:
    """The samples of a map whose empty cells are zero; None for those of which most cells are occupied."""
    return [_row_table(one[0], _occupied(one)[0]) if _may_be_sparse(one) else None for one in value.split(1)]


def _may_be_sparse(value: Tensor) -> bool:
    """Whether one cell in 64 shows that (1, C, H, W) has empty cells: maps inside a trunk are full."""
    return float(_occupied(value[:, :, ::STEP, ::STEP]).float().mean()) <= DENSE


def joined(found: Sequence[Rows | Tensor]) -> Tensor:
    """(B, O, H, W) of the samples; channels-last where one of them is given as rows."""
    first = next((rows for rows in found if isinstance(rows, Rows)), None)
    if first is None:
        return torch.cat([rows for rows in found if isinstance(rows, Tensor)])
    channels, (height, width) = first.table.shape[1], first.mask.shape[2:]
    maps = first.table.new_empty(len(found), height, width, channels).permute(0, 3, 1, 2)
    for number, rows in enumerate(found):
        into = maps[number : number + 1]
        rows.write(into) if isinstance(rows, Rows) else into.copy_(rows)
    return maps


def _occupied(value: Tensor) -> Tensor:
    """(B, H, W) bool: cells of (B, C, H, W) that are not zero in all channels."""
    rows = value.permute(0, 2, 3, 1)
    if not rows.is_contiguous() or rows.shape[-1] % 16:
        return (value != 0).any(dim=1)
    # two floats at a time, then eight comparisons: a fifth of the time
    return rows.view(torch.int64).ne(0).view(torch.int64).ne(0).any(dim=-1)


def _row_table(value: Tensor, occupied: Tensor) -> Rows:
    """Rows of (C, H, W), of which the cells in ``occupied`` (H, W) are not zero."""
    y, x = occupied.nonzero(as_tuple=True)
    table = value.new_zeros(len(y) + 1, len(value))
    rows = value.permute(1, 2, 0)
    if rows.is_contiguous():
        cells = y * value.shape[2] + x
        torch.index_select(rows.view(-1, len(value)), 0, cells, out=table[1:])
    else:
        table[1:] = value[:, y, x].t()
    index = torch.zeros(value.shape[1] + 2, value.shape[2] + 2, dtype=torch.int64)
    index[y + 1, x + 1] = torch.arange(1, len(y) + 1)
    return Rows(table, index, occupied[None, None].float())


def distinct(value: Tensor) -> tuple[Tensor, Tensor]:
    """Table of the distinct rows of (1, C, H, W), after a row of zeros, and the row of each cell.

    The index is (H + 2, W + 2) int64, with a border of zeros.
    """
    rows = value[0].permute(1, 2, 0).reshape(-1, value.shape[1]).contiguous()
    one, many = torch.unique(rows.double() @ _weights(rows.shape[1]), return_inverse=True)
    first = torch.zeros(len(one), dtype=torch.int64).scatter_(0, many, torch.arange(len(many)))
    table = rows[first]
    if not torch.equal(table[many], rows):  # two rows of one sum
        table, many = torch.unique(rows, dim=0, return_inverse=True)
    index = F.pad((many + 1).view(value.shape[2:]), (1, 1, 1, 1))
    return torch.cat([rows.new_zeros(1, rows.shape[1]), table]), index


def _weights(count: int) -> Tensor:
    """Weights whose sum of products differs for different rows, as good as always."""
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * 12.9898)
