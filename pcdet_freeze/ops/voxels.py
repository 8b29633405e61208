"""Point cloud -> voxels, bitwise equal to spconv's generator.

Voxels are in the order of their first point. A voxel stores its first ``max_points`` points. After
``max_voxels`` voxels no new voxel is created, but points are still added to existing ones.

The cell of a point is ``floor((p - lower) / size)`` in float32, with range and size rounded to float32 first:
one subtraction and one division, each rounded. Other arithmetic (float64, or multiplication by a reciprocal)
assigns points on the border of a cell differently.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.ops._arrays import Array, check_columns
from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.devices import constant
from pcdet_freeze.utils.signals.interrupts import uninterrupted

Numbers = Sequence[float] | np.ndarray
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Knuth's multiplicative hashing, TAOCP 6.4
_DIRECT = 1 << 19  # number of cells up to which a table of the whole grid is faster


class Voxelizer:
    """Groups points (N, C) into voxels. Calls have no state, so threads may share one object.

    Args:
        voxel_size: [x, y, z] metres.
        point_cloud_range: [x1, y1, z1, x2, y2, z2] metres; the upper bound is exclusive.
        max_points: maximum number of points per voxel.
        max_voxels: maximum number of voxels per point cloud.
        num_point_features: C, the columns of a point, starting with x, y, z.

    Raises:
        ConfigError: invalid size, range or limit.

    Attributes:
        grid_size: (3,) int64, cells along x, y, z.
    """

    def __init__(
        self,
        voxel_size: Numbers,
        point_cloud_range: Numbers,
        max_points: int,
        max_voxels: int,
        num_point_features: int,
    ) -> None:
        size = _numbers("voxel_size", voxel_size, 3)
        bounds = _numbers("point_cloud_range", point_cloud_range, 6)
        if not (size > 0).all():
            raise ConfigError(f"voxel_size must be positive in x, y and z; got {size.tolist()}")
        for name, value, least in (
            ("max_points", max_points, 1),
            ("max_voxels", max_voxels, 1),
            ("num_point_features", num_point_features, 3),
        ):
            if int(value) != value or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}; got {value!r}")
        self.max_points, self.max_voxels = int(max_points), int(max_voxels)
        self.num_point_features = int(num_point_features)
        self.grid_size = np.round((bounds[3:] - bounds[:3]) / size).astype(np.int64)
        if not (self.grid_size > 0).all():
            raise ConfigError(
                "point_cloud_range [x1, y1, z1, x2, y2, z2] must span at least one voxel on each axis; got "
                f"{bounds.tolist()} with voxel_size {size.tolist()}"
            )
        self._size, self._lower = size.astype(np.float32), bounds[:3].astype(np.float32)

    def __call__(self, points: Array) -> tuple[Array, Array, Array]:
        """Points (N, C), converted to float32 -> voxels, coords, num_points with the type of ``points``.

        Returns:
            voxels: (M, max_points, C) float32, padded with zeros.
            coords: (M, 3) int32 [z, y, x].
            num_points: (M,) int32, 1..max_points.

        Points outside the range and points with non-finite coordinates are dropped.

        Raises:
            DataError: points whose shape is not (N, num_point_features).
        """
        check_columns("points", points, self.num_point_features, exact=True)
        if isinstance(points, torch.Tensor):
            return self._voxelize_torch(points.detach().float())
        dense = np.ascontiguousarray(points, dtype=np.float32)
        return _voxelize(dense, self._lower, self._size, self.grid_size, self.max_points, self.max_voxels)

    def together(self, clouds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Voxels of several point clouds in one array each, which nothing need copy.

        Returns:
            voxels, coords and num_points as of one cloud, one cloud after the other; coords are (M, 4)
            [number of the cloud, z, y, x].
        """
        numbered = []
        for points in clouds:
            check_columns("points", points, self.num_point_features, exact=True)
            dense = np.ascontiguousarray(points, dtype=np.float32)
            numbered.append(
                (dense, *_number(dense, self._lower, self._size, self.grid_size, self.max_voxels))
            )
        ends = np.cumsum([0, *(len(coords) for _, _, coords in numbered)])
        voxels = np.zeros((ends[-1], self.max_points, self.num_point_features), dtype=np.float32)
        all_coords, counts = np.empty((ends[-1], 4), np.int32), np.zeros(ends[-1], np.int32)
        for number, (points, owner, coords) in enumerate(numbered):
            own = slice(ends[number], ends[number + 1])
            all_coords[own, 0], all_coords[own, 1:] = number, coords
            _fill(points, owner, voxels[own], counts[own])
        return voxels, all_coords, counts

    def _voxelize_torch(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Equal result by sorting, on any device, without a loop over points."""
        cells, inside = self.cells_torch(points)
        points, cells = points[inside], cells[inside]
        grid = self.grid_size.tolist()
        # a stable sort preserves the order of the points of each cell
        key, order = ((cells[:, 2] * grid[1] + cells[:, 1]) * grid[0] + cells[:, 0]).sort(stable=True)
        begins = torch.ones_like(key, dtype=torch.bool)
        begins[1:] = key[1:] != key[:-1]
        start = begins.nonzero()[:, 0]
        group = begins.cumsum(0) - 1
        place = torch.arange(len(key), device=key.device) - start[group]
        opened = order[start].argsort()  # voxels in the order of their first point
        voxel_of = torch.empty_like(opened)
        voxel_of[opened] = torch.arange(len(opened), device=key.device)
        opened = opened[: self.max_voxels]

        voxels = points.new_zeros((len(opened), self.max_points, self.num_point_features))
        taken = (place < self.max_points) & (voxel_of[group] < self.max_voxels)
        voxels[voxel_of[group][taken], place[taken]] = points[order[taken]]
        coords = cells[order[start[opened]]].flip(1).int()
        ends = torch.cat([start[1:], start.new_full((min(1, len(start)),), len(key))])
        num_points = (ends - start)[opened].clamp(max=self.max_points).int()
        return voxels, coords, num_points

    def cells_torch(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells (N, 3) int64 [x, y, z] of points (N, C), and which points (N,) are inside the range."""
        # divide by a tensor: on CUDA, torch turns division by a Python number into a multiplication
        size, lower = (constant(a.tolist(), points.device) for a in (self._size, self._lower))
        grid = constant(self.grid_size.tolist(), points.device, torch.long)
        cell = torch.floor((points[:, :3] - lower) / size)
        inside = ((cell >= 0) & (cell < grid)).all(dim=1)
        return cell.where(inside.unsqueeze(1), 0.0).long(), inside


def _numbers(name: str, values: Numbers, count: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be {count} numbers; got {values!r}") from error
    if array.shape != (count,) or not np.isfinite(array).all():
        raise ConfigError(f"{name} must be {count} finite numbers; got {values!r}")
    return array


@compiled
def _number_voxels(points, lower, size, grid, max_voxels):  # type: ignore[no-untyped-def]
    """Voxel of each point (-1: none), coords (M, 3) [z, y, x].

    A small grid uses one slot per cell. Otherwise the slots are an open-addressing hash table of cell
    numbers, sized for the point cloud.
    """
    limit = min(len(points), max_voxels)
    cells = grid[0] * grid[1] * grid[2]
    direct = cells <= _DIRECT
    bits = 4
    while (1 << bits) < (cells if direct else 4 * limit):
        bits += 1
    slots = np.full(1 << bits, -1, dtype=np.int32)
    last, shift = np.uint64((1 << bits) - 1), np.uint64(64 - bits)
    keys = np.empty(limit, dtype=np.int64)
    coords = np.empty((limit, 3), dtype=np.int32)
    owner = np.full(len(points), -1, dtype=np.int32)
    opened = 0
    for n in range(len(points)):
        x = (points[n, 0] - lower[0]) / size[0]
        y = (points[n, 1] - lower[1]) / size[1]
        z = (points[n, 2] - lower[2]) / size[2]
        if not (0 <= x < grid[0] and 0 <= y < grid[1] and 0 <= z < grid[2]):
            continue  # this form also rejects NaN
        cx, cy, cz = np.int64(x), np.int64(y), np.int64(z)
        key = (cz * grid[1] + cy) * grid[0] + cx
        slot = np.uint64(key) if direct else (np.uint64(key) * _GOLDEN) >> shift
        while slots[slot] >= 0 and keys[slots[slot]] != key:
            slot = (slot + np.uint64(1)) & last
        if slots[slot] < 0:
            if opened == limit:
                continue
            slots[slot], keys[opened] = opened, key
            coords[opened, 0], coords[opened, 1], coords[opened, 2] = cz, cy, cx
            opened += 1
        owner[n] = slots[slot]
    return owner, coords[:opened].copy()


_number = uninterrupted(_number_voxels)


@compiled
def _fill_voxels(points, owner, voxels, num_points):  # type: ignore[no-untyped-def]
    """Copy points into their voxels, which are zero; a voxel takes its first points."""
    for n in range(len(points)):
        voxel = owner[n]
        if voxel >= 0 and num_points[voxel] < voxels.shape[1]:
            for c in range(points.shape[1]):
                voxels[voxel, num_points[voxel], c] = points[n, c]
            num_points[voxel] += 1


_fill = uninterrupted(_fill_voxels)


@uninterrupted
@compiled
def _voxelize(points, lower, size, grid, max_points, max_voxels):  # type: ignore[no-untyped-def]
    """Two passes: number the voxels, then copy the points into arrays of the exact size."""
    owner, coords = _number_voxels(points, lower, size, grid, max_voxels)
    voxels = np.zeros((len(coords), max_points, points.shape[1]), dtype=np.float32)
    num_points = np.zeros(len(coords), dtype=np.int32)
    _fill_voxels(points, owner, voxels, num_points)
    return voxels, coords, num_points
