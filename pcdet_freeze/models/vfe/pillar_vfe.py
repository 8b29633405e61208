"""PillarVFE, the pillar feature network of PointPillars (arXiv:1812.05784, section 2.1).

It computes valid points only (:mod:`pcdet_freeze.ops.pillars`), or with ``RAGGED: False`` all slots of
the padded pillars, as OpenPCDet does. Both are the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.freezing.eval_lock import base_class
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.registry import VFES
from pcdet_freeze.models.vfe.pillar_encoder import PillarEncoder, PillarLayer, PillarVFESettings
from pcdet_freeze.models.vfe.recognised_layers import is_recognised
from pcdet_freeze.ops.norm import batch_norm
from pcdet_freeze.ops.pillars.ragged_norm import ragged_norm
from pcdet_freeze.ops.pillars.ragged_pillars import (
    RaggedPillars,
    decorate_points,
    first_rows,
    run_layer,
    run_layers,
)
from pcdet_freeze.utils.tracing import is_traced


@dataclass(frozen=True)
class PaddedVFESettings(PillarVFESettings):
    """``MODEL.VFE`` of PillarVFE."""

    ragged: bool = True
    """compute valid points only; False: the padding as well, as OpenPCDet does"""


class PFNLayer(PillarLayer):
    """A layer on padded pillars, or on their valid points."""

    def forward(self, points: Tensor, pillars: RaggedPillars | None = None) -> Tensor:
        """(M, P, channels_in) -> (M, channels_out) in the last layer, else (M, P, channels_out).

        With ``pillars``, rows of points and padding, see :func:`.ragged_pillars.run_layer`.
        """
        if pillars is not None:
            return run_layer(self, points, pillars, ragged_norm)
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

    Settings = PaddedVFESettings
    Layer = PFNLayer
    reads = ("voxels", "voxel_num_points", "voxel_coords")
    writes = ("pillar_features",)
    ragged = True  # also of a model that was pickled before there was the key

    def __init__(self, settings: PaddedVFESettings, context: BuildContext) -> None:
        super().__init__(settings, context, "MODEL.VFE (PillarVFE)")
        self.ragged = settings.ragged
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
        if self._can_be_ragged(batch_dict["voxels"]):
            rows, pillars = self._points(batch_dict)
            features = first_rows(rows)
            for layer in self.pfn_layers:
                features = layer(features, pillars)
        else:
            features = self._decorate(
                batch_dict["voxels"], batch_dict["voxel_num_points"], batch_dict["voxel_coords"]
            )
            for layer in self.pfn_layers:
                features = layer(features)
        batch_dict["pillar_features"] = features
        return batch_dict

    @property
    def forward_frozen(self) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        """``forward`` for norm layers in eval mode, equal but for rounding; None with ``RAGGED: False``."""
        return self._forward_frozen if self.ragged else None

    def _forward_frozen(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        points, pillars = self._points(batch_dict)
        batch_dict["pillar_features"] = run_layers(self.pfn_layers, points, pillars)
        return batch_dict

    def _can_be_ragged(self, voxels: Tensor) -> bool:
        """Whether this forward computes valid points only: anything unknown runs as written."""
        norms = [layer.norm for layer in self.pfn_layers if layer.use_norm]
        # one value has no variance; other ranks wait for a SyncBatchNorm
        few = voxels.shape[0] * voxels.shape[1] < 2 and not any(
            isinstance(norm, nn.SyncBatchNorm) for norm in norms
        )
        known = (
            self.ragged
            and base_class(self) is PillarVFE
            and all(is_recognised(layer, PFNLayer) for layer in self.pfn_layers)
        )
        return known and not few and not is_traced()

    def _points(self, batch_dict: dict[str, Any]) -> tuple[Tensor, RaggedPillars]:
        """Input features (N, width_in) of the valid points, and the pillars that they belong to."""
        voxels, counts = batch_dict["voxels"], batch_dict["voxel_num_points"]
        centres = self._centres(batch_dict["voxel_coords"], voxels.dtype)
        pillars = RaggedPillars.of(counts, voxels.shape[1])
        points = decorate_points(voxels, counts, centres, pillars, self.use_absolute_xyz, self.with_distance)
        return points, pillars

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
