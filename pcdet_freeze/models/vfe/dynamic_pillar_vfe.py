"""DynamicPillarVFE: pillars with any number of points, computed from the point cloud.

The pillar feature network of PointPillars (arXiv:1812.05784, section 2.1) on the dynamic voxels of MVF
(arXiv:1910.06528, section 3.1): no point is dropped, and nothing is padded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.eval_lock import base_class
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.registry import VFES
from pcdet_freeze.models.vfe.pillar_encoder import PillarEncoder, PillarLayer, PillarVFESettings
from pcdet_freeze.models.vfe.recognised_layers import NORMS
from pcdet_freeze.ops.norm import batch_norm
from pcdet_freeze.ops.pillars.ragged_norm import ragged_norm
from pcdet_freeze.ops.pillars.ragged_pillars import RaggedPillars, run_layer
from pcdet_freeze.utils.tracing import is_traced


class DynamicPFNLayer(PillarLayer):
    """A layer on points that are in the order of their pillars."""

    def forward(self, points: Tensor, pillars: RaggedPillars) -> Tensor:
        """Features of points -> features of pillars in the last layer, else of points.

        Args:
            points: (N, channels_in), those of a pillar after each other.
            pillars: M pillars of at least one point each.

        Returns:
            (M, channels_out) in the last layer, else (N, channels_out).
        """
        return run_layer(self, points, pillars, _normalise)


def _normalise(layer: Any, given: Tensor, rows: Tensor, pillars: RaggedPillars) -> Tensor:
    # one value has no variance; other ranks wait for a SyncBatchNorm
    norm = layer.norm
    enough = pillars.points > 1 or isinstance(norm, nn.SyncBatchNorm)
    if base_class(norm) in NORMS and norm.training and enough and not is_traced():
        return ragged_norm(layer, given, rows, pillars)
    # as one signal (1, width, N): on N rows torch computes less precise statistics
    return batch_norm(norm, rows.t().contiguous().unsqueeze(0)).squeeze(0).t()


@VFES.register_as("DynPillarVFE")
class DynamicPillarVFE(PillarEncoder):
    """Encodes points relative to the mean and the centre of their pillar; max-pools over each pillar."""

    Layer = DynamicPFNLayer
    reads = ("points",)
    writes = ("pillar_features", "voxel_coords")

    def __init__(self, settings: PillarVFESettings, context: BuildContext) -> None:
        super().__init__(settings, context, "MODEL.VFE (DynPillarVFE)")
        self.lower = context.point_cloud_range[:3]
        self.columns, self.rows = context.grid_size[:2]

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Encode pillars.

        Reads:
            points: (N, 1 + C) [sample, x, y, z, ...], metres
        Writes:
            pillar_features: (M, F); M is 0 if no point is inside the range
            voxel_coords: (M, 4) int32 [sample, 0, y, x], in cells, sorted

        Points outside the range in x and y are dropped; z is not checked, as in OpenPCDet.
        """
        points, cells = self._inside(batch_dict["points"])
        samples = points[:, 0].long()
        key = (samples * self.rows + cells[:, 1]) * self.columns + cells[:, 0]
        key, order = key.sort(stable=True)
        points, cells = points[order], cells[order]
        pillar, pillar_of, lengths = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
        pillars = RaggedPillars(lengths, pillar_of)
        coords = torch.stack(
            [
                pillar // (self.rows * self.columns),
                torch.zeros_like(pillar),
                pillar // self.columns % self.rows,
                pillar % self.columns,
            ],
            dim=1,
        )
        features = self._decorate(points[:, 1:], cells, pillars)
        for layer in self.pfn_layers:
            features = layer(features, pillars)
        batch_dict["pillar_features"], batch_dict["voxel_coords"] = features, coords.int()
        return batch_dict

    def _inside(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points inside the range in x and y, and their cells (N, 2) int64 [x, y]."""
        lower, size = points.new_tensor(self.lower[:2]), points.new_tensor(self.voxel_size[:2])
        cell = torch.floor((points[:, 1:3] - lower) / size)
        # comparisons with NaN are False, so NaN is outside
        inside = ((cell >= 0) & (cell < points.new_tensor([self.columns, self.rows]))).all(dim=1)
        return points[inside], cell[inside].long()

    def _decorate(self, points: Tensor, cells: Tensor, pillars: RaggedPillars) -> Tensor:
        """(N, C) points -> (N, width_in) features."""
        xyz, pillar_of = points[:, :3], pillars.pillar_of
        count = pillars.lengths.to(xyz.dtype).unsqueeze(1)
        mean = xyz.new_zeros(len(count), 3).index_add(0, pillar_of, xyz) / count
        size, lower = self.voxel_size, self.lower
        planar = [cells[:, a].to(xyz.dtype) * size[a] + (size[a] / 2 + lower[a]) for a in range(2)]
        centre = torch.stack([*planar, torch.full_like(planar[0], size[2] / 2 + lower[2])], dim=1)
        parts = [points if self.use_absolute_xyz else points[:, 3:], xyz - mean[pillar_of], xyz - centre]
        if self.with_distance:
            parts.append(xyz.norm(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)
