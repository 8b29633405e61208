"""PillarVFE, the pillar feature network of PointPillars (arXiv:1812.05784, section 2.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.registry import VFES
from pcdet_freeze.models.vfe.pillar_encoder import PillarEncoder, PillarLayer, PillarVFESettings
from pcdet_freeze.ops.norm import batch_norm
from pcdet_freeze.ops.ragged_pillars import decorate_points, run_layers


class PFNLayer(PillarLayer):
    """A layer on padded pillars."""

    def forward(self, points: Tensor) -> Tensor:
        """(M, P, channels_in) -> (M, channels_out) in the last layer, else (M, P, channels_out)."""
        features = self.linear(points).permute(0, 2, 1)
        if self.use_norm:
            # non-contiguous with channels first: in faster layouts torch sums less precisely, which later
            # layers amplify to 1e-3 of the gradient of this layer
            features = batch_norm(self.norm, features)
        if self.last:
            # ReLU is monotonic, so it can follow the maximum, which is cheaper
            return F.relu(features.max(dim=2).values)
        features = F.relu(features)
        highest = features.max(dim=2, keepdim=True).values
        return torch.cat([features, highest.expand_as(features)], dim=1).transpose(1, 2)


@VFES.register
class PillarVFE(PillarEncoder):
    """Encodes points relative to the mean and the centre of their pillar; max-pools over each pillar."""

    Layer = PFNLayer
    reads = ("voxels", "voxel_num_points", "voxel_coords")
    writes = ("pillar_features",)

    def __init__(self, settings: PillarVFESettings, context: BuildContext) -> None:
        super().__init__(settings, context, "MODEL.VFE (PillarVFE)")
        self.centre_of_first = tuple(
            size / 2 + low for size, low in zip(context.voxel_size, context.point_cloud_range, strict=False)
        )

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Encode pillars.

        Reads:
            voxels: (M, P, C) points x, y, z (metres), ..., padded with zero rows
            voxel_num_points: (M,) points in each pillar, without padding
            voxel_coords: (M, 4) [sample, z, y, x], in cells
        Writes:
            pillar_features: (M, F); M is 0 if the batch has no pillar

        Padding passes through the layers as zeros and contributes to the batch statistics, as in OpenPCDet.
        """
        features = self._decorate(
            batch_dict["voxels"], batch_dict["voxel_num_points"], batch_dict["voxel_coords"]
        )
        for layer in self.pfn_layers:
            features = layer(features)
        batch_dict["pillar_features"] = features
        return batch_dict

    def forward_frozen(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """``forward`` for norm layers in eval mode, equal except for rounding, without computing padding."""
        voxels, counts = batch_dict["voxels"], batch_dict["voxel_num_points"]
        if not len(voxels):
            return self.forward(batch_dict)
        centres = self._centres(batch_dict["voxel_coords"], voxels.dtype)
        filled = torch.arange(voxels.shape[1], device=voxels.device) < counts.unsqueeze(1)
        points = decorate_points(voxels, counts, centres, filled, self.use_absolute_xyz, self.with_distance)
        batch_dict["pillar_features"] = run_layers(self.pfn_layers, points, filled)
        return batch_dict

    def _centres(self, coords: Tensor, dtype: torch.dtype) -> Tensor:
        """Centre (M, 3) of each pillar, metres."""
        centres = [
            coords[:, 3 - axis].to(dtype) * self.voxel_size[axis] + self.centre_of_first[axis]
            for axis in range(3)
        ]
        return torch.stack(centres, dim=1)

    def _decorate(self, voxels: Tensor, counts: Tensor, coords: Tensor) -> Tensor:
        """(M, P, C) points -> (M, P, width_in) input features, zero in padding."""
        xyz = voxels[..., :3]
        mean = xyz.sum(dim=1, keepdim=True) / counts.clamp(min=1).to(voxels.dtype).view(-1, 1, 1)
        parts = [
            voxels if self.use_absolute_xyz else voxels[..., 3:],
            xyz - mean,
            xyz - self._centres(coords, voxels.dtype).unsqueeze(1),
        ]
        if self.with_distance:
            parts.append(xyz.norm(dim=2, keepdim=True))
        slots = torch.arange(voxels.shape[1], device=voxels.device)
        filled = slots < counts.unsqueeze(1)
        return torch.cat(parts, dim=-1) * filled.unsqueeze(-1).to(voxels.dtype)
