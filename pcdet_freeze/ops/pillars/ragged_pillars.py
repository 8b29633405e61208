"""The layers of PillarVFE on valid points only: padding is not computed.

In the padded form (M, P, C) of a pillar encoder, padding is zero in front of the first layer, so all padded
slots have the same features behind it. Each layer appends the maximum of the pillar to the features of its
slots, so behind it all padded slots of one pillar have the same features. One row for all padding, and later
one row per pillar, therefore represents the padded slots: it takes part in the maximum of each pillar that
has padding, and counts as many times as there are slots in the statistics of norm layers in train mode
(:mod:`.ragged_norm`). Of the 512 000 slots of a KITTI frame, about 25 000 contain a point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcdet_freeze.ops.pillars.pillar_max import pillar_max
from pcdet_freeze.utils.devices import is_accelerator, total_of

Normalize = Callable[[Any, Tensor, Tensor, "RaggedPillars"], Tensor]
"""PFN layer, rows (R, C_in) of points and padding, the same rows (R, C) after ``linear``, their pillars ->
the rows (R, C) after ``norm``"""


@dataclass(frozen=True)
class RaggedPillars:
    """Which points belong to which pillar: the points of a pillar follow each other."""

    lengths: Tensor
    """(M,) int64, points in each pillar"""
    pillar_of: Tensor
    """(N,) int64, pillar of each point"""
    slots: int = 0
    """P, slots of each pillar in the padded form; 0: there is no padding"""

    @classmethod
    def of(cls, counts: Tensor, slots: int, points: int | None = None) -> RaggedPillars:
        """Pillars with ``counts`` (M,) points.

        Args:
            slots: P; a pillar has no more points.
            points: the sum of ``counts``, where the host knows it: otherwise it waits for the device, once.
        """
        lengths = counts.long().clamp(min=0, max=slots)
        if points is None:  # on an accelerator it may be known since the points were counted
            points = total_of(counts, slots) if is_accelerator(counts) else int(lengths.sum())
        # with the size known, nothing else waits for the device
        return cls(lengths, torch.repeat_interleave(lengths, output_size=points), slots)

    @property
    def points(self) -> int:
        """N."""
        return len(self.pillar_of)

    @property
    def values(self) -> int:
        """Values per channel in the padded form: its slots."""
        return len(self.lengths) * self.slots if self.slots else self.points

    @property
    def padded(self) -> Tensor:
        """(M,) int64, padded slots of each pillar."""
        return self.slots - self.lengths

    def padded_slots(self, rows: int) -> Tensor | int:
        """Padded slots that each of ``rows`` rows represents: (M, 1), or the number of all for one row."""
        if rows == len(self.lengths):
            return self.padded.unsqueeze(1)
        return self.values - self.points

    def slot_indices(self) -> Tensor:
        """(N,) indices of the points among all slots (M * P) of the padded form."""
        first = self.lengths.cumsum(0) - self.lengths
        place = torch.arange(self.points, device=first.device) - first[self.pillar_of]
        return self.pillar_of * self.slots + place


def decorate_points(
    voxels: Tensor,
    counts: Tensor,
    centres: Tensor,
    pillars: RaggedPillars,
    keep_xyz: bool,
    with_distance: bool,
) -> Tensor:
    """Input features (N, width_in) of the points, in the order of pillars.

    Args:
        voxels: (M, P, C) points x, y, z (metres), ..., padded with zero rows.
        counts: (M,) points in each pillar.
        centres: (M, 3) centre of each pillar, metres.
        pillars: made of ``counts``.
        keep_xyz: include x, y, z.
        with_distance: append the distance from the sensor.
    """
    points, pillar_of = voxels.flatten(0, 1)[pillars.slot_indices()], pillars.pillar_of
    xyz = points[:, :3]
    # summed over padded slots too, since the order of summation changes the last bits
    mean = voxels[..., :3].sum(dim=1) / counts.clamp(min=1).to(voxels.dtype).unsqueeze(1)
    parts = [points if keep_xyz else points[:, 3:], xyz - mean[pillar_of], xyz - centres[pillar_of]]
    if with_distance:
        parts.append(xyz.norm(dim=1, keepdim=True))
    return torch.cat(parts, dim=1)


def first_rows(points: Tensor) -> Tensor:
    """Input (N + 1, width_in) of the first layer: the points, and one row of zeros for all padding."""
    return torch.cat([points, points.new_zeros(1, points.shape[1])])


def call_norm(layer: Any, given: Tensor, rows: Tensor, pillars: RaggedPillars) -> Tensor:
    """Normalise by a norm layer in eval mode, which treats each row alike."""
    normalised: Tensor = layer.norm(rows)
    return normalised


def run_layer(layer: Any, given: Tensor, pillars: RaggedPillars, normalize: Normalize = call_norm) -> Tensor:
    """A PFN layer (with ``linear``, ``norm``, ``use_norm`` and ``last``).

    Args:
        given: (N + 1, C_in) rows in the first layer, (N + M, C_in) in later ones: points, then padding.
            Without padding (N, C_in).
        pillars: of the points.
        normalize: how the norm layer is applied.

    Returns:
        (M, F) in the last layer, else the rows (N + M, F) of the next one.
    """
    rows = layer.linear(given)
    if layer.use_norm:
        rows = normalize(layer, given, rows, pillars)
    if layer.last:
        # ReLU is monotonic, so it can follow the maximum, which is cheaper
        return pillar_max(rows, pillars.lengths, pillars.pillar_of, pillars.slots, relu=True)
    rows = F.relu(rows)
    highest = pillar_max(rows, pillars.lengths, pillars.pillar_of, pillars.slots)
    if not pillars.slots:
        return torch.cat([rows, highest[pillars.pillar_of]], dim=1)
    padding = rows[pillars.points :].expand_as(highest)
    own = torch.cat([rows[: pillars.points], padding])
    return torch.cat([own, torch.cat([highest[pillars.pillar_of], highest])], dim=1)


def run_layers(layers: Iterable[Any], points: Tensor, pillars: RaggedPillars) -> Tensor:
    """PFN layers, with norm layers in eval mode, on points (N, width_in) -> pillars (M, F)."""
    rows = first_rows(points)
    for layer in layers:
        rows = run_layer(layer, rows, pillars)
    return rows
