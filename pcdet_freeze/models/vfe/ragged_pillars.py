"""PillarVFE's layers on the points that there are, where its norm layers are frozen.

Padding goes through the layers as rows of zeros. With fixed norm layers such a row gives the same features
wherever it stands in a pillar, so one row stands for all of them, and it counts where a pillar has padding.
The maximum is then over the same values: of KITTI's 512 000 slots a frame some 25 000 hold a point.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def decorate_points(
    voxels: Tensor, counts: Tensor, centres: Tensor, filled: Tensor, keep_xyz: bool, with_distance: bool
) -> Tensor:
    """Features (N, width_in) of the points in the slots ``filled`` (M, P), pillar by pillar.

    Args:
        voxels: (M, P, C) points, x, y, z in metres first, zero rows as padding.
        counts: (M,) points in each pillar.
        centres: (M, 3) middle of each pillar, metres.
        keep_xyz: begin with x, y, z.
        with_distance: end with the distance from the sensor.
    """
    points, pillar_of = voxels[filled], filled.nonzero()[:, 0]
    xyz = points[:, :3]
    # summed over the padded slots: the order of a sum is its last bit
    mean = voxels[..., :3].sum(dim=1) / counts.clamp(min=1).to(voxels.dtype).unsqueeze(1)
    parts = [points if keep_xyz else points[:, 3:], xyz - mean[pillar_of], xyz - centres[pillar_of]]
    if with_distance:
        parts.append(xyz.norm(dim=1, keepdim=True))
    return torch.cat(parts, dim=1)


def run_layers(layers: Iterable[Any], points: Tensor, filled: Tensor) -> Tensor:
    """PFN layers (with ``linear``, ``norm`` and ``last``) on points (N, width_in) -> pillars (M, F)."""
    lengths, pillar_of = filled.sum(dim=1), filled.nonzero()[:, 0]
    has_padding = ~filled.all(dim=1, keepdim=True)
    # one row for the padding of all pillars; behind the first layer, where it stands beside its pillar's
    # maximum, one for that of each
    features, padding = points, points.new_zeros(1, points.shape[1])
    highest = points.new_zeros(0)
    for layer in layers:
        rows = layer.linear(torch.cat([features, padding]))
        rows = F.relu(layer.norm(rows) if layer.use_norm else rows)
        features, padding = rows.split([len(features), len(padding)])
        highest = torch.segment_reduce(features, "max", lengths=lengths, unsafe=True)
        highest = torch.where(has_padding, torch.maximum(highest, padding), highest)
        if not layer.last:
            features = torch.cat([features, highest[pillar_of]], dim=1)
            padding = torch.cat([padding.expand_as(highest), highest], dim=1)
    return highest
