"""Voxels of a whole batch on its device; the host waits once, for their number and that of their points.

The result is bit-identical to that of :class:`.voxels.Voxelizer` for each sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_freeze.ops.voxels import Voxelizer
from pcdet_freeze.utils.devices import keep_total, wait_for


def voxelize_batch(voxelizer: Voxelizer, points: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, 1 + C) [sample, x, y, z, ...] -> voxels, coords, num_points of all samples.

    Returns:
        voxels: (M, max_points, C) float32, padded with zeros, ordered by sample and first point.
        coords: (M, 4) int32 [sample, z, y, x].
        num_points: (M,) int32; the host knows their sum (``utils.devices.total_of``).
    """
    if not len(points):
        shape = (0, voxelizer.max_points, voxelizer.num_point_features)
        counts = points.new_zeros(0, dtype=torch.int32)
        return points.new_zeros(shape), points.new_zeros((0, 4), dtype=torch.int32), keep_total(counts, 0)
    sample, rows = points[:, 0].long(), points[:, 1:].detach().float()
    cells, is_inside = voxelizer.cells_torch(rows)
    nx, ny, nz = voxelizer.grid_size.tolist()
    key = ((sample * nz + cells[:, 2]) * ny + cells[:, 1]) * nx + cells[:, 0]
    # a stable sort preserves the order of the points of each cell; points outside come last
    key, order = key.where(is_inside, samples * nx * ny * nz).sort(stable=True)
    groups = _Groups(key, order, sample, samples, voxelizer)
    found, taken = wait_for([groups.voxels, groups.points])
    return groups.gather(rows, cells, found, taken)


class _Groups:
    """Sorted points, (N,) each; what is not known to the host has N entries, and one for what is dropped."""

    def __init__(
        self, key: Tensor, order: Tensor, sample: Tensor, samples: int, voxelizer: Voxelizer
    ) -> None:
        self.order, self.sample, self.voxelizer = order, sample[order], voxelizer
        number, (nx, ny, nz) = len(key), voxelizer.grid_size.tolist()
        position = torch.arange(number, device=key.device)
        is_inside = key < samples * nx * ny * nz
        self.begins = is_inside.clone()
        self.begins[1:] &= key[1:] != key[:-1]
        group = (self.begins.cumsum(0) - 1).where(is_inside, number)
        at_begin = group.where(self.begins, number)
        start = position.new_zeros(number + 1).scatter_(0, at_begin, position)
        self.place = position - start[group]
        # voxels in the order of their first point; groups that do not exist come last
        first = position.new_full((number + 1,), samples * number)
        first.scatter_(0, at_begin, (self.sample * number + order).where(self.begins, samples * number))
        opened = first.argsort()
        rank = torch.empty_like(opened).scatter_(0, opened, torch.arange(number + 1, device=key.device))
        of_sample = position.new_zeros(samples).index_add_(0, self.sample, self.begins.long())
        within = rank[group] - (of_sample.cumsum(0) - of_sample)[self.sample]
        self.is_kept = is_inside & (within < voxelizer.max_voxels)
        self.is_taken = self.is_kept & (self.place < voxelizer.max_points)
        kept = of_sample.clamp(max=voxelizer.max_voxels)
        self.voxel = (kept.cumsum(0) - kept)[self.sample] + within
        self.voxels, self.points = (self.begins & self.is_kept).sum(), self.is_taken.sum()

    def gather(self, rows: Tensor, cells: Tensor, voxels: int, points: int) -> tuple[Tensor, Tensor, Tensor]:
        """voxels, coords and num_points, of which ``voxels`` and ``points`` are the numbers."""
        most = self.voxelizer.max_points
        padded = rows.new_zeros((voxels * most + 1, rows.shape[1]))
        slot = (self.voxel * most + self.place).where(self.is_taken, voxels * most)
        padded[slot] = rows[self.order]
        voxel = self.voxel.where(self.begins & self.is_kept, voxels)
        coords = torch.cat([self.sample[:, None], cells[self.order].flip(1)], dim=1).int()
        where = coords.new_zeros((voxels + 1, 4))
        where[voxel] = coords
        counts = coords.new_zeros(voxels + 1).index_add_(
            0, self.voxel.where(self.is_taken, voxels), torch.ones_like(self.voxel, dtype=torch.int32)
        )
        shape = (voxels, most, rows.shape[1])
        return padded[:-1].view(shape), where[:-1], keep_total(counts[:-1], points)
