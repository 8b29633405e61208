"""The layers of PillarVFE on valid points only, for frozen norm layers.

Padding passes through the layers as rows of zeros. With fixed norm layers all padded rows of a pillar have
the same features, so one row represents them, and it takes part in the maximum of each pillar that has
padding. The maximum is over the same values. Of the 512 000 slots of a KITTI frame, about 25 000 contain a
point.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcdet_freeze.utils.devices import is_accelerator, total_of


def decorate_points(
    voxels: Tensor, counts: Tensor, centres: Tensor, filled: Tensor, keep_xyz: bool, with_distance: bool
) -> Tensor:
    """Input features (N, width_in) of the points in the slots ``filled`` (M, P), in the order of pillars.

    Args:
        voxels: (M, P, C) points x, y, z (metres), ..., padded with zero rows.
        counts: (M,) points in each pillar.
        centres: (M, 3) centre of each pillar, metres.
        keep_xyz: include x, y, z.
        with_distance: append the distance from the sensor.
    """
    pillar_of, slot = _filled_slots(counts, filled)
    points = voxels[pillar_of, slot]
    xyz = points[:, :3]
    # summed over padded slots too, since the order of summation changes the last bits
    mean = voxels[..., :3].sum(dim=1) / counts.clamp(min=1).to(voxels.dtype).unsqueeze(1)
    parts = [points if keep_xyz else points[:, 3:], xyz - mean[pillar_of], xyz - centres[pillar_of]]
    if with_distance:
        parts.append(xyz.norm(dim=1, keepdim=True))
    return torch.cat(parts, dim=1)


def _filled_slots(counts: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Pillar (N,) and slot (N,) of each point; their number is known from the voxelization."""
    if not is_accelerator(counts):
        pillar_of, slot = filled.nonzero(as_tuple=True)
        return pillar_of, slot
    pillar_of = torch.repeat_interleave(counts, output_size=total_of(counts))
    begin = counts.cumsum(0) - counts
    return pillar_of, torch.arange(len(pillar_of), device=counts.device) - begin[pillar_of]


def run_layers(layers: Iterable[Any], points: Tensor, filled: Tensor) -> Tensor:
    """PFN layers (with ``linear``, ``norm`` and ``last``) on points (N, width_in) -> pillars (M, F)."""
    lengths = filled.sum(dim=1)
    # with the size known, nothing waits for the device
    pillar_of = torch.repeat_interleave(lengths, output_size=len(points))
    has_padding = ~filled.all(dim=1, keepdim=True)
    # one row for the padding of all pillars; after the first layer, which concatenates the maximum of the
    # pillar, one row per pillar
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
