"""MeanVFE and DynamicMeanVFE: the feature of a voxel is the mean of its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.registry import VFES


@dataclass(frozen=True)
class MeanVFESettings:
    """``MODEL.VFE`` of MeanVFE and DynamicMeanVFE, which have no settings."""


@VFES.register
class MeanVFE(nn.Module):
    """Mean of the points of voxels that the data processor computed."""

    Settings = MeanVFESettings
    reads: tuple[str, ...] = ("voxels", "voxel_num_points")
    writes: tuple[str, ...] = ("voxel_features",)
    reads_train: tuple[str, ...] = ()

    def __init__(self, settings: MeanVFESettings, context: BuildContext) -> None:
        super().__init__()
        context.need_voxels(f"MODEL.VFE ({type(self).__name__})")
        self.num_point_features = context.num_point_features
        context.features["voxel_features"] = Features(self.num_point_features)

    def get_output_feature_dim(self) -> int:
        """Channels of ``voxel_features``."""
        return self.num_point_features

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Average the points of each voxel.

        Reads:
            voxels: (M, P, C) points, padded with zero rows
            voxel_num_points: (M,) points in each voxel, without padding
        Writes:
            voxel_features: (M, C)
        """
        voxels, counts = batch_dict["voxels"], batch_dict["voxel_num_points"]
        total = voxels.sum(dim=1)
        batch_dict["voxel_features"] = (total / counts.clamp(min=1).to(total.dtype).unsqueeze(1)).contiguous()
        return batch_dict


@VFES.register
class DynamicMeanVFE(MeanVFE):
    """Mean of all points of each voxel, computed from the points: no point and no voxel is dropped.

    (Dynamic voxelization: arXiv:1910.06528, section 3.2.)
    """

    reads = ("points", "batch_size")
    writes = ("voxel_features", "voxel_coords")
    low: Tensor
    size: Tensor
    cells: Tensor

    def __init__(self, settings: MeanVFESettings, context: BuildContext) -> None:
        super().__init__(settings, context)
        for name, values, kind in (
            ("low", context.point_cloud_range[:3], torch.float32),
            ("size", context.voxel_size, torch.float32),
            ("cells", context.grid_size, torch.int64),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=kind), persistent=False)

    @torch.no_grad()
    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Compute voxels and average their points.

        Reads:
            points: (N, 1 + C) [sample, x, y, z, ...], metres
        Writes:
            voxel_features: (M, C)
            voxel_coords: (M, 4) int32 [sample, z, y, x], in cells, sorted by sample, x, y, z
        """
        points = batch_dict["points"]
        cell = torch.floor((points[:, 1:4] - self.low) / self.size).long()
        inside = ((cell >= 0) & (cell < self.cells)).all(dim=1)
        points, cell = points[inside], cell[inside]
        width, height, depth = self.cells.tolist()
        place = ((points[:, 0].long() * width + cell[:, 0]) * height + cell[:, 1]) * depth + cell[:, 2]
        place, owner, counts = place.unique(return_inverse=True, return_counts=True)
        total = points.new_zeros(len(place), points.shape[1] - 1).index_add_(0, owner, points[:, 1:])
        batch_dict["voxel_features"] = total / counts.to(total.dtype).unsqueeze(1)
        z, y = place % depth, place.div(depth, rounding_mode="floor") % height
        x = place.div(depth * height, rounding_mode="floor") % width
        sample = place.div(depth * height * width, rounding_mode="floor")
        batch_dict["voxel_coords"] = torch.stack([sample, z, y, x], dim=1).int()
        return batch_dict
