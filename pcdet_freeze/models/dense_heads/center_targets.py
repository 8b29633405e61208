"""Targets of centre-based detection: heatmaps and box codes (CenterPoint, arXiv:2006.11275, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_freeze.errors import DataError
from pcdet_freeze.models.dense_heads.center_head_settings import CenterTargetSettings
from pcdet_freeze.utils.devices import constant, host_copy, is_accelerator, send_together


@dataclass(frozen=True)
class MapGeometry:
    """Position and size of the cells of a feature map."""

    lower: tuple[float, float]
    """minimum x, y of the range, metres"""
    cell: tuple[float, float]
    """voxel size along x, y, metres"""
    stride: int
    """voxels per cell of the map"""
    width: int
    """cells along x"""
    height: int
    """cells along y"""


@dataclass(frozen=True)
class CenterTargets:
    """Targets of one head for B samples with K slots for objects."""

    heatmaps: Tensor
    """(B, classes, H, W) float32, 1 at the cells of object centres"""
    target_boxes: Tensor
    """(B, K, 8 or 10): offset in the cell (2, cells), z (metres), log sizes (3), cos, sin, velocity (2)"""
    inds: Tensor
    """(B, K) int64, flat cell index y * W + x"""
    masks: Tensor
    """(B, K) bool, slots with an object"""
    listed: tuple[Tensor, Tensor] | None = None
    """sample and slot (N,) of the objects, ascending; None: they are found in ``masks``"""

    def objects(self) -> tuple[Tensor, Tensor]:
        """Sample and slot (N,) int64 of each object."""
        return self.masks.nonzero(as_tuple=True) if self.listed is None else self.listed  # type: ignore[return-value]


def gaussian_radius(dx: Tensor, dy: Tensor, min_overlap: float) -> Tensor:
    """Radius of a heatmap peak in cells: the maximum shift of corners with an IoU of at least
    ``min_overlap``.

    The minimum of the three cases of CornerNet (arXiv:1808.01244, section 3.2): both corners shifted in the
    same direction, one box inside the other, one box outside the other. As in CornerNet's released code and
    in the models trained with it, each root is divided by 2 instead of twice the leading coefficient.

    Args:
        dx, dy: (N,) sizes in cells.
    """
    area, perimeter = dx * dy, dx + dy
    shifted = _larger_root(1.0, perimeter, area * (1 - min_overlap) / (1 + min_overlap))
    inside = _larger_root(4.0, 2 * perimeter, area * (1 - min_overlap))
    outside = _larger_root(4 * min_overlap, -2 * min_overlap * perimeter, area * (min_overlap - 1))
    return torch.minimum(torch.minimum(shifted, inside), outside)


def _larger_root(a: float, b: Tensor, c: Tensor) -> Tensor:
    return (b + (b.square() - 4 * a * c).sqrt()) / 2


def draw_gaussians(
    heatmaps: Tensor, plane: Tensor, x: Tensor, y: Tensor, radius: Tensor, reach: int | None = None
) -> None:
    """Draw a Gaussian peak for each object into ``heatmaps``, in place; overlapping peaks use the maximum.

    A peak is exp(-d^2 / (2 s^2)) with s = (2 r + 1) / 6, in a square of 2 r + 1 cells (arXiv:1904.07850).

    Args:
        heatmaps: (planes, H, W) float32.
        plane, x, y: (N,) int64, plane and cell of each peak.
        radius: (N,) int64, in cells.
        reach: at least the largest radius; None: it is read from ``radius``.
    """
    if len(plane) == 0:
        return
    _, height, width = heatmaps.shape
    reach = int(radius.max()) if reach is None else reach
    steps = torch.arange(-reach, reach + 1, device=heatmaps.device)
    spread = ((2 * radius + 1).double() / 6).view(-1, 1)
    # separable: one row and one column per object
    profile = torch.exp(-steps.double().square() / (2 * spread.square()))
    profile = profile * (steps.abs() <= radius.view(-1, 1))
    column, row = x.view(-1, 1) + steps, y.view(-1, 1) + steps
    across = profile * ((column >= 0) & (column < width))
    along = profile * ((row >= 0) & (row < height))
    values = (along.unsqueeze(2) * across.unsqueeze(1)).to(heatmaps.dtype)
    # values outside the map are 0, so clamping them to the border has no effect
    line = plane.view(-1, 1) * height + row.clamp(0, height - 1)
    index = line.unsqueeze(2) * width + column.clamp(0, width - 1).unsqueeze(1)
    heatmaps.view(-1).scatter_reduce_(0, index.flatten(), values.flatten(), "amax")


class CenterTargetAssigner:
    """Targets of one head.

    Args:
        classes: labels (from 1) of the classes of the head, in the order of its heatmap.
        geometry: geometry of the feature map.
        with_velocity: columns 7 and 8 of boxes are the velocity.
    """

    def __init__(
        self,
        classes: Sequence[int],
        geometry: MapGeometry,
        settings: CenterTargetSettings,
        with_velocity: bool,
    ) -> None:
        self.classes = tuple(classes)
        self.geometry, self.settings = geometry, settings
        self.with_velocity = with_velocity

    def assign_targets(self, gt_boxes: Tensor) -> CenterTargets:
        """Targets for (B, G, 8 or 10) boxes [x, y, z, dx, dy, dz, heading, (vx, vy,) class from 1].

        Metres and radians in the LiDAR frame. Rows of other classes or of size 0 are ignored. Centres outside
        the map are clamped to its border. ``gt_boxes`` is not modified.
        """
        _check_columns(gt_boxes, self.with_velocity)
        grid, samples, slots = self.geometry, len(gt_boxes), self.settings.num_max_objs
        device = gt_boxes.device
        heatmaps = gt_boxes.new_zeros(samples * len(self.classes), grid.height, grid.width)
        boxes = gt_boxes.new_zeros(samples, slots, 10 if self.with_velocity else 8)
        inds = torch.zeros(samples, slots, dtype=torch.long, device=device)
        masks = torch.zeros(samples, slots, dtype=torch.bool, device=device)

        # listed on the host, which need not wait for the number of boxes, nor for the largest
        listed = self._select(host_copy(gt_boxes))
        reach = int(self._radius(listed[-1]).max()) if len(listed[-1]) else 0
        sample, slot, plane, mine = send_together(listed, device)
        place = self._cells(mine)
        cell = place.long()
        # a device may round the radius of the largest box otherwise
        reach, radius = reach + int(is_accelerator(device)), self._radius(mine)
        draw_gaussians(heatmaps, sample * len(self.classes) + plane, cell[:, 0], cell[:, 1], radius, reach)
        boxes[sample, slot] = self._encode(mine, place - cell)
        inds[sample, slot] = cell[:, 1] * grid.width + cell[:, 0]
        masks.index_put_((sample, slot), masks.new_ones(()))
        heatmaps = heatmaps.view(samples, len(self.classes), grid.height, grid.width)
        return CenterTargets(heatmaps, boxes, inds, masks, (sample, slot))

    def _select(self, gt_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample, slot, class in this head (from 0) and row of each box of this head, on the CPU."""
        member = gt_boxes[..., -1:].long() == torch.tensor(self.classes)
        of_head = member.any(dim=-1)
        slot = of_head.cumsum(dim=1) - 1
        kept = of_head & (slot < self.settings.num_max_objs) & (gt_boxes[..., 3:6] > 0).all(dim=-1)
        sample, row = kept.nonzero(as_tuple=True)
        return sample, slot[sample, row], member[sample, row].int().argmax(dim=-1), gt_boxes[sample, row]

    def _cells(self, boxes: Tensor) -> Tensor:
        """(N, 2) centres [x, y] in cells of the map, clamped to its border."""
        grid = self.geometry
        lower, cell, upper = (
            constant(numbers, boxes.device, boxes.dtype)
            # half a cell from the border, so that rounding down remains inside
            for numbers in (grid.lower, grid.cell, (grid.width - 0.5, grid.height - 0.5))
        )
        return torch.minimum(((boxes[:, :2] - lower) / cell / grid.stride).clamp(min=0), upper)

    def _radius(self, boxes: Tensor) -> Tensor:
        cell = constant(self.geometry.cell, boxes.device, boxes.dtype)
        sizes = boxes[:, 3:5] / cell / self.geometry.stride
        radius = gaussian_radius(sizes[:, 0], sizes[:, 1], self.settings.gaussian_overlap)
        return radius.long().clamp(min=self.settings.min_radius)

    def _encode(self, boxes: Tensor, offset: Tensor) -> Tensor:
        heading = boxes[:, 6:7]
        parts = [offset, boxes[:, 2:3], boxes[:, 3:6].log(), heading.cos(), heading.sin()]
        return torch.cat([*parts, boxes[:, 7:9]] if self.with_velocity else parts, dim=1)


def _check_columns(gt_boxes: Tensor, with_velocity: bool) -> None:
    least = 10 if with_velocity else 8
    if gt_boxes.ndim != 3 or gt_boxes.shape[-1] < least:
        raise DataError(
            f"gt_boxes must be (B, G, {least}): box{', velocity' if with_velocity else ''} and class; got "
            f"{tuple(gt_boxes.shape)}. "
            + (
                "Set PRED_VELOCITY, or remove vel from HEAD_ORDER."
                if with_velocity
                else "Check the data set."
            )
        )
