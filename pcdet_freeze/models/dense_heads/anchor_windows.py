"""Which anchors can overlap a box at all: those in a window around it, where anchors lie on a grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pcdet_freeze.ops.boxes import nearest_bev_boxes

SLACK = 1e-2
"""metres by which windows are wider than they must be, so that rounding leaves nothing out"""


_known = WeakTensorKeyDictionary()
"""owner of the memory of anchors -> (place in it, shape, version) -> their grid"""


@dataclass(frozen=True)
class AnchorGrid:
    """Anchors of one class, alike in each cell."""

    xs: Tensor
    """(columns,) metres"""
    ys: Tensor
    """(rows,)"""
    half: Tensor
    """(anchors per cell, 2) half sizes along x and y of an anchor's nearest axis-aligned box"""

    @classmethod
    def of(cls, anchors: Tensor) -> AnchorGrid | None:
        """The grid of (cells, anchors per cell, 7), cells row by row; None where they do not lie on one."""
        columns = int((anchors[:, 0, 1] == anchors[0, 0, 1]).sum())
        if len(anchors) < 2 or len(anchors) % columns:
            return None
        cells = anchors.view(-1, columns, *anchors.shape[1:])
        xs, ys = cells[0, :, 0, 0], cells[:, 0, 0, 1]
        aligned = (cells[..., 0] == xs.view(1, -1, 1)).all() & (cells[..., 1] == ys.view(-1, 1, 1)).all()
        if not bool(aligned & (cells[..., 3:] == cells[0, 0, :, 3:]).all()):
            return None
        flat = nearest_bev_boxes(anchors[0])
        return cls(xs, ys, (flat[:, 2:] - flat[:, :2]) / 2)

    def near(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Cell and place in it, (K,) each, of all anchors whose nearest axis-aligned box may meet one of
        (G, 7)."""
        flat = nearest_bev_boxes(boxes)
        middle, size = (flat[:, :2] + flat[:, 2:]) / 2, (flat[:, 2:] - flat[:, :2]) / 2 + SLACK
        reach = (self.half.unsqueeze(1) + size).unsqueeze(2)  # (anchors per cell, G, 1, 2)
        in_x = (self.xs - middle[:, :1]).abs() <= reach[..., 0]
        in_y = (self.ys - middle[:, 1:]).abs() <= reach[..., 1]
        # an anchor is near where some box has it in its rows and in its columns; most rows are in no box's
        rows, columns = (near.any(dim=(0, 1)).nonzero().squeeze(1) for near in (in_y, in_x))
        hits = in_y[..., rows].transpose(1, 2).float() @ in_x[..., columns].float()
        slot, row, column = hits.nonzero(as_tuple=True)
        return rows[row] * len(self.xs) + columns[column], slot


def grid_of(anchors: Tensor) -> AnchorGrid | None:
    """:meth:`AnchorGrid.of`, remembered as long as the anchors live: they are the same in every step."""
    owner = anchors if anchors._base is None else anchors._base
    grids = _known.setdefault(owner, {})
    place = anchors.storage_offset(), tuple(anchors.shape), anchors._version
    if place not in grids:
        grids[place] = AnchorGrid.of(anchors)
    found: AnchorGrid | None = grids[place]
    return found
