"""DynamicPillarVFE: pillars of any number of points, straight from the point cloud.

The pillar feature network of PointPillars (arXiv:1812.05784, section 2.1) on the dynamic voxels of MVF
(arXiv:1910.06528, section 3.1): no point is dropped, and nothing is padded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.registry import VFES
from pcdet_freeze.models.vfe.pillar_vfe import PillarVFESettings
from pcdet_freeze.ops.norm import batch_norm


class DynamicPFNLayer(nn.Module):
    """Linear, norm, ReLU on each point, then the maximum over the points of a pillar.

    All but the last layer give half of their width to the maximum, repeated beside each point's own features.
    """

    def __init__(
        self, channels_in: int, channels_out: int, use_norm: bool, last: bool, momentum: float
    ) -> None:
        super().__init__()
        self.last = last
        width = channels_out if last else channels_out // 2
        self.linear = nn.Linear(channels_in, width, bias=not use_norm)
        self.norm = nn.BatchNorm1d(width, eps=1e-3, momentum=momentum) if use_norm else None

    def forward(self, points: Tensor, pillar_of: Tensor, pillars: int) -> Tensor:
        """Features of points -> features of pillars in the last layer, else of points.

        Args:
            points: (N, channels_in).
            pillar_of: (N,) int64, the pillar of each point; every pillar has a point.
            pillars: M.

        Returns:
            (M, channels_out) in the last layer, else (N, channels_out).
        """
        features = self.linear(points)
        if self.norm is not None:
            # the norm sees one long signal, (1, width, N): on N rows torch sums statistics less exactly
            signal = features.t().contiguous().unsqueeze(0)
            features = batch_norm(self.norm, signal).squeeze(0).t()
        features = F.relu(features)
        index = pillar_of.unsqueeze(1).expand_as(features)
        highest = features.new_zeros(pillars, features.shape[1])
        highest = highest.scatter_reduce(0, index, features, "amax", include_self=False)
        return highest if self.last else torch.cat([features, highest[pillar_of]], dim=1)


@VFES.register_as("DynPillarVFE")
class DynamicPillarVFE(nn.Module):
    """Describes points by their offsets from the pillar's mean and centre, pillars by the maximum."""

    Settings = PillarVFESettings
    reads = ("points",)
    writes = ("pillar_features", "voxel_coords")
    reads_train: tuple[str, ...] = ()

    def __init__(self, settings: PillarVFESettings, context: BuildContext) -> None:
        super().__init__()
        context.need_voxels("MODEL.VFE (DynPillarVFE)")
        self.with_distance = settings.with_distance
        self.use_absolute_xyz = settings.use_abslote_xyz
        self.voxel_size, self.lower = context.voxel_size, context.point_cloud_range[:3]
        self.columns, self.rows = context.grid_size[:2]
        width_in = context.num_point_features + (6 if self.use_absolute_xyz else 3) + int(self.with_distance)
        widths = [width_in, *settings.num_filters]
        self.pfn_layers = nn.ModuleList(
            DynamicPFNLayer(width, wider, settings.use_norm, i == len(widths) - 2, settings.bn_momentum)
            for i, (width, wider) in enumerate(pairwise(widths))
        )
        context.features["pillar_features"] = Features(self.get_output_feature_dim())

    def get_output_feature_dim(self) -> int:
        """Channels of ``pillar_features``."""
        return int(self.pfn_layers[-1].linear.out_features)  # type: ignore[union-attr,arg-type]

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Encode pillars.

        Reads:
            points: (N, 1 + C) [sample, x, y, z, ...], metres
        Writes:
            pillar_features: (M, F); (0, F) where no point lies inside the range
            voxel_coords: (M, 4) int32 [sample, 0, y, x], in cells, sorted

        Points outside the range in x and y are left out; z is not looked at, as in OpenPCDet.
        """
        points, cells = self._inside(batch_dict["points"])
        samples = points[:, 0].long()
        key = (samples * self.rows + cells[:, 1]) * self.columns + cells[:, 0]
        pillar, pillar_of = torch.unique(key, return_inverse=True)
        coords = torch.stack(
            [
                pillar // (self.rows * self.columns),
                torch.zeros_like(pillar),
                pillar // self.columns % self.rows,
                pillar % self.columns,
            ],
            dim=1,
        )
        features = self._decorate(points[:, 1:], cells, pillar_of, len(pillar))
        for layer in self.pfn_layers:
            features = layer(features, pillar_of, len(pillar))
        batch_dict["pillar_features"], batch_dict["voxel_coords"] = features, coords.int()
        return batch_dict

    def _inside(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points inside the range in x and y, and their cells (N, 2) int64 [x, y]."""
        lower, size = points.new_tensor(self.lower[:2]), points.new_tensor(self.voxel_size[:2])
        cell = torch.floor((points[:, 1:3] - lower) / size)
        # NaN is outside: every comparison with it is false
        inside = ((cell >= 0) & (cell < points.new_tensor([self.columns, self.rows]))).all(dim=1)
        return points[inside], cell[inside].long()

    def _decorate(self, points: Tensor, cells: Tensor, pillar_of: Tensor, pillars: int) -> Tensor:
        """(N, C) points -> (N, width_in) features."""
        xyz = points[:, :3]
        count = torch.bincount(pillar_of, minlength=pillars).to(xyz.dtype).unsqueeze(1)
        mean = xyz.new_zeros(pillars, 3).index_add(0, pillar_of, xyz) / count
        size, lower = self.voxel_size, self.lower
        planar = [cells[:, a].to(xyz.dtype) * size[a] + (size[a] / 2 + lower[a]) for a in range(2)]
        centre = torch.stack([*planar, torch.full_like(planar[0], size[2] / 2 + lower[2])], dim=1)
        parts = [points if self.use_absolute_xyz else points[:, 3:], xyz - mean[pillar_of], xyz - centre]
        if self.with_distance:
            parts.append(xyz.norm(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)
