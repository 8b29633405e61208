"""Anchors that can overlap a box: those in a window around it, for anchors on a regular grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pcdet_freeze.ops.boxes import nearest_bev_boxes

SLACK = 1e-2
"""margin of the windows in metres, so that rounding excludes no anchor"""


_grids = WeakTensorKeyDictionary()
"""base tensor of anchors -> (offset, shape, version) -> grid; weak, so that tensors are not kept alive"""


@dataclass(frozen=True)
class AnchorGrid:
    """Anchors of one class, identical in each cell."""

    xs: Tensor
    """(columns,) metres"""
    ys: Tensor
    """(rows,)"""
    half: Tensor
    """(anchors per cell, 2) half sizes along x and y of an anchor's nearest axis-aligned box"""

    @classmethod
    def of(cls, anchors: Tensor) -> AnchorGrid | None:
        """The grid of (cells, anchors per cell, 7), cells in row-major order; None for other anchors."""
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
        """Cell and slot in the cell, (K,) each, of all anchors whose nearest axis-aligned box can overlap a
        box of (G, 7)."""
        flat = nearest_bev_boxes(boxes)
        middle, size = (flat[:, :2] + flat[:, 2:]) / 2, (flat[:, 2:] - flat[:, :2]) / 2 + SLACK
        reach = (self.half.unsqueeze(1) + size).unsqueeze(2)  # (anchors per cell, G, 1, 2)
        in_x = (self.xs - middle[:, :1]).abs() <= reach[..., 0]
        in_y = (self.ys - middle[:, 1:]).abs() <= reach[..., 1]
        # an anchor is near if some box covers both its row and its column; most rows are covered by no box
        rows, columns = (near.any(dim=(0, 1)).nonzero().squeeze(1) for near in (in_y, in_x))
        hits = in_y[..., rows].transpose(1, 2).float() @ in_x[..., columns].float()
        slot, row, column = hits.nonzero(as_tuple=True)
        return rows[row] * len(self.xs) + columns[column], slot


def grid_of(anchors: Tensor) -> AnchorGrid | None:
    """:meth:`AnchorGrid.of`, cached as long as the anchors exist, because they are the same in each step."""
    owner = anchors if anchors._base is None else anchors._base
    grids = _grids.setdefault(owner, {})
    key = anchors.storage_offset(), tuple(anchors.shape), anchors._version
    if key not in grids:
        grids[key] = AnchorGrid.of(anchors)
    found: AnchorGrid | None = grids[key]
    return found
