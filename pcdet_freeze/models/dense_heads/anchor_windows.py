"""Pairs of a box and an anchor that can overlap: those in a window around each box, on a regular grid.

The windows are computed on the host from the labels, so their number and sizes are known there and nothing
waits for a device. The pairs themselves exist on the device only: one for each anchor in the window of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pcdet_freeze.ops.boxes import nearest_bev_boxes
from pcdet_freeze.utils.devices import send_together

SLACK = 1e-2
"""margin of the windows in metres, so that rounding excludes no anchor"""

_grids = WeakTensorKeyDictionary()
"""base tensor of anchors -> (layout of all classes) -> grid; weak, so that tensors are not kept alive"""


@dataclass(frozen=True)
class AnchorGrid:
    """Anchors of all classes; those of a class are identical in each cell of a regular grid.

    A slot is one of the anchors of a cell. The anchor of a slot and a cell has the flat index
    ``offset[slot] + cell * stride`` in the output of the head.
    """

    axes: np.ndarray
    """(classes, 2, 3): lower centre and step in metres, and number of cells, along x and y"""
    slot_of: np.ndarray
    """(classes, 2): first slot and number of slots"""
    half: np.ndarray
    """(slots, 2) float32 half sizes along x and y of an anchor's nearest axis-aligned box"""
    offset: np.ndarray
    """(slots,)"""
    stride: int
    anchors: int
    """number of all anchors"""
    first: np.ndarray
    """(classes, 2) where the centres of a class begin in ``xs`` and ``ys``"""
    xs: Tensor
    """centres of the columns of all classes, on the device; metres"""
    ys: Tensor
    """of the rows"""
    rest: Tensor
    """(slots, 5) z, dx, dy, dz, heading, on the device"""

    @classmethod
    def of(cls, anchors: Sequence[Tensor]) -> AnchorGrid | None:
        """The grid of the anchors of each class, (cells, anchors per cell, 7) with cells in row-major order,
        or (1, anchors, 7) with slots before cells; None for other anchors."""
        device, total = anchors[0].device, sum(part.shape[0] * part.shape[1] for part in anchors)
        found = [_axes_of(part.detach().cpu()) for part in anchors]
        grids = [one for one in found if one is not None]
        if len(grids) < len(found):
            return None
        counts = [cells.shape[1] for _, _, cells in grids]
        begin = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        by_class, offset = anchors[0].shape[0] == 1, np.arange(begin[-1])
        if by_class:
            sizes = np.repeat([len(cells) for _, _, cells in grids], counts)
            offset = np.cumsum(sizes) - sizes
        slots = torch.cat([cells[0] for _, _, cells in grids])
        at_origin = torch.cat([torch.zeros_like(slots[:, :2]), slots[:, 2:]], dim=1)
        lengths = np.array([[len(xs), len(ys)] for xs, ys, _ in grids])
        return cls(
            axes=np.array([[_axis(xs), _axis(ys)] for xs, ys, _ in grids]),
            slot_of=np.stack([begin[:-1], np.array(counts)], axis=1),
            half=nearest_bev_boxes(at_origin)[:, 2:].numpy(),
            offset=offset,
            stride=1 if by_class else int(begin[-1]),
            anchors=total,
            first=np.cumsum(lengths, axis=0) - lengths,
            xs=torch.cat([xs for xs, _, _ in grids]).to(device),
            ys=torch.cat([ys for _, ys, _ in grids]).to(device),
            rest=slots[:, 2:7].to(device),
        )

    def windows(self, boxes: Tensor, sample: np.ndarray, kind: np.ndarray) -> Windows:
        """The windows of (N, 7) boxes on the CPU, which must be finite.

        Args:
            sample: (N,) sample of each box.
            kind: (N,) its class, an index into the classes of the grid.
        """
        flat = nearest_bev_boxes(boxes)
        counts = self.slot_of[kind, 1]
        box = np.repeat(np.arange(len(boxes)), counts)
        slot = np.arange(len(box)) - np.repeat(np.cumsum(counts) - counts - self.slot_of[kind, 0], counts)
        lower, upper = (part.numpy().astype(np.float64)[box] for part in flat.split(2, dim=1))
        half = self.half[slot]
        axes, first = self.axes[kind[box]], self.first[kind[box]]
        begin, end = (
            ((bound - axes[..., 0]) / axes[..., 1]).clip(-1, axes[..., 2])
            for bound in (lower - half - SLACK, upper + half + SLACK)
        )
        low = np.ceil(begin).astype(np.int64).clip(0)
        size = (np.minimum(np.floor(end) + 1, axes[..., 2]).astype(np.int64) - low).clip(0)
        counts, columns = size.prod(axis=1), axes[:, 0, 2].astype(np.int64)
        table = np.stack(
            [
                box,
                slot,
                sample[box] * self.anchors + self.offset[slot],
                low[:, 1] * columns + low[:, 0],
                columns,
                size[:, 0],
                *(first + low).T,
                np.cumsum(counts) - counts,
            ]
        )
        return Windows(table, counts, flat, int(counts.sum()))


@dataclass(frozen=True)
class Windows:
    """One window for each box and each anchor of a cell, on the host."""

    table: np.ndarray
    """(9, M) int64: box, slot, index of the slot's anchor in the sample's cell 0, first cell, cells of a row
    of the map and of the window, where its columns begin in ``xs`` and its rows in ``ys``, first pair"""
    counts: np.ndarray
    """(M,) pairs of each window"""
    flat: Tensor
    """(N, 4) nearest axis-aligned BEV boxes [x1, y1, x2, y2]"""
    pairs: int


@dataclass(frozen=True)
class Pairs:
    """Pairs of a box and an anchor of its class that may overlap, on the device; (K,) each."""

    box: Tensor
    anchor: Tensor
    """index into the anchors of all samples"""
    slot: Tensor
    x: Tensor
    """centre of the anchor, metres"""
    y: Tensor
    overlap: Tensor
    """IoU of the nearest axis-aligned BEV boxes, float32: the arithmetic of boxes3d_nearest_bev_iou"""

    @classmethod
    def of(cls, grid: AnchorGrid, windows: Windows) -> Pairs:
        """All pairs of ``windows``; nothing waits for the device."""
        device = grid.xs.device
        half = torch.from_numpy(grid.half[windows.table[1]])
        edges = torch.cat([windows.flat[windows.table[0]], half], dim=1).T.contiguous()
        table, counts, edges = send_together(
            [torch.from_numpy(windows.table), torch.from_numpy(windows.counts), edges], device
        )
        window = torch.repeat_interleave(counts, output_size=windows.pairs)
        box, slot, base, cell, columns, width, x_at, y_at, start = (row[window] for row in table)
        within = torch.arange(windows.pairs, device=device) - start
        row = within // width
        column = within - row * width
        x, y = grid.xs[x_at + column], grid.ys[y_at + row]
        anchor = base + (cell + row * columns + column) * grid.stride
        overlap = _overlap(x, y, *(row[window] for row in edges))
        return cls(box, anchor, slot, x, y, overlap)


def _overlap(
    x: Tensor, y: Tensor, x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor, dx: Tensor, dy: Tensor
) -> Tensor:
    """IoU (K,) of anchors with centre (x, y) and half sizes (dx, dy), and boxes."""
    ax1, ax2, ay1, ay2 = x - dx, x + dx, y - dy, y + dy
    width = torch.minimum(ax2, x2) - torch.maximum(ax1, x1)
    length = torch.minimum(ay2, y2) - torch.maximum(ay1, y1)
    inter = width.clamp(min=0) * length.clamp(min=0)
    union = (ax2 - ax1) * (ay2 - ay1) + (x2 - x1) * (y2 - y1) - inter
    return inter / union.clamp(min=1e-6)


def grid_of(anchors: Sequence[Tensor]) -> AnchorGrid | None:
    """:meth:`AnchorGrid.of`, cached as long as the anchors exist, because they are the same in each step."""
    owner = anchors[0] if anchors[0]._base is None else anchors[0]._base
    grids = _grids.setdefault(owner, {})
    key = tuple((part.data_ptr(), tuple(part.shape), part._version) for part in anchors)
    if key not in grids:
        grids[key] = AnchorGrid.of(anchors)
    found: AnchorGrid | None = grids[key]
    return found


def _axes_of(anchors: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """xs (columns,), ys (rows,) and the anchors (cells, slots, 7) of a class on a regular grid."""
    cells = anchors
    if len(anchors) == 1:
        flat = anchors[0]
        again = (flat[:, :2] == flat[0, :2]).all(dim=1).nonzero()[:, 0].tolist()
        period = again[1] if len(again) > 1 else len(flat)
        if len(flat) % period:
            return None
        cells = flat.view(-1, period, 7).transpose(0, 1)
    columns = int((cells[:, 0, 1] == cells[0, 0, 1]).sum())
    if len(cells) % columns:
        return None
    grid = cells.reshape(-1, columns, *cells.shape[1:])
    xs, ys = grid[0, :, 0, 0], grid[:, 0, 0, 1]
    aligned = (grid[..., 0] == xs.view(1, -1, 1)).all() & (grid[..., 1] == ys.view(-1, 1, 1)).all()
    same = (grid[..., 2:] == grid[0, 0, :, 2:]).all()
    is_regular = all(_is_regular(places) for places in (xs, ys))
    return (xs.clone(), ys.clone(), cells) if bool(aligned & same) and is_regular else None


def _axis(places: Tensor) -> tuple[float, float, float]:
    """Lower centre, step, number of equidistant ``places`` (n,)."""
    low, high = places[0].item(), places[-1].item()
    return low, (high - low) / max(len(places) - 1, 1) or 1.0, len(places)


def _is_regular(places: Tensor) -> bool:
    low, step, count = _axis(places)
    expected = low + step * torch.arange(count, dtype=torch.float64)
    return step > 0 and bool(((places.double() - expected).abs() < SLACK / 4).all())
