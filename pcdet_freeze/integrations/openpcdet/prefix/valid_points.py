"""OpenPCDet's PillarVFE on valid points only (F5).

The class is recognised by its attributes, in forks and under other names too, and used only where its own
forward and this one agree on the first batch and on a made-up one, within the tolerance of F5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.ops.pillars.ragged_pillars import RaggedPillars, decorate_points, run_layers
from pcdet_freeze.utils.tensors import error_sums, relative_errors

READS = ("voxels", "voxel_num_points", "voxel_coords")
WRITES = "pillar_features"
_NUMBERS = ("voxel_x", "voxel_y", "voxel_z", "x_offset", "y_offset", "z_offset")
_FLAGS = ("with_distance", "use_absolute_xyz")


@dataclass(frozen=True)
class Layer:
    """A PFNLayer of OpenPCDet, by the names of :func:`run_layers`."""

    linear: nn.Module
    norm: nn.Module | None
    use_norm: bool
    last: bool


class ValidPoints:
    """Forward of a PillarVFE without its padding; equal to its own forward except for rounding.

    Reads:
        voxels: (M, P, C) points x, y, z (metres), ..., padded with zero rows
        voxel_num_points: (M,) points in each pillar, 1 or more
        voxel_coords: (M, 4) [sample, z, y, x], in cells
    Writes:
        pillar_features: (M, F)
    """

    def __init__(self, module: nn.Module, layers: tuple[Layer, ...]) -> None:
        self.module, self.layers = module, layers
        found: Any = module
        self.size = (found.voxel_x, found.voxel_y, found.voxel_z)
        self.offset = (found.x_offset, found.y_offset, found.z_offset)
        self.keep_xyz, self.with_distance = bool(found.use_absolute_xyz), bool(found.with_distance)

    def __call__(self, batch_dict: dict[str, Any], **kwargs: Any) -> Any:
        voxels, counts, coords = (batch_dict[key] for key in READS)
        if len(voxels) < 2:  # its own forward drops the axis of one pillar
            return type(self.module).forward(self.module, batch_dict, **kwargs)
        pillars = RaggedPillars.of(counts, voxels.shape[1])
        centres = self._centres(coords, voxels.dtype)
        points = decorate_points(voxels, counts, centres, pillars, self.keep_xyz, self.with_distance)
        batch_dict[WRITES] = run_layers(self.layers, points, pillars)
        return batch_dict

    def _centres(self, coords: Tensor, dtype: torch.dtype) -> Tensor:
        """Centre (M, 3) of each pillar, metres."""
        axes = [coords[:, 3 - axis].to(dtype) * self.size[axis] + self.offset[axis] for axis in range(3)]
        return torch.stack(axes, dim=1)

    @torch.no_grad()
    def probe_error(self) -> float:
        """Relative error on a made-up batch that holds nothing but the keys that PillarVFE reads.

        Infinite where the module's own forward needs more, writes more, or changes its inputs.
        """
        batch = self._made_up()
        before, given = dict(batch), {key: value.clone() for key, value in batch.items()}
        try:
            own = type(self.module).forward(self.module, given)
        except Exception:  # a forward of another class may raise anything
            return float("inf")
        if not isinstance(own, dict) or set(own) != {*READS, WRITES}:
            return float("inf")
        changes = [error_sums(before[key], given[key]) for key in READS]
        error, *changed = relative_errors([error_sums(own[WRITES], self(batch)[WRITES]), *changes])
        return float("inf") if any(changed) else error

    def _made_up(self) -> dict[str, Tensor]:
        """40 pillars of 1 to 5 points in 5 slots, scattered far."""
        draw, like = torch.Generator().manual_seed(0), next(self.module.parameters())
        counts = torch.arange(40) % 5 + 1
        columns = int(self.layers[0].linear.in_features)  # type: ignore[arg-type]
        columns -= (6 if self.keep_xyz else 3) + self.with_distance
        voxels = torch.randn(40, 5, columns, generator=draw) * 5
        voxels *= (torch.arange(5) < counts.unsqueeze(1)).unsqueeze(2)
        coords = torch.randint(0, 99, (40, 4), generator=draw)
        made = {"voxels": voxels.to(like), "voxel_num_points": counts.to(like.device)}
        return {**made, "voxel_coords": coords.to(like.device)}


def valid_points_form(module: nn.Module) -> ValidPoints | None:
    """The quick form of a frozen PillarVFE of OpenPCDet; None for any other module."""
    numbers = all(isinstance(getattr(module, name, None), int | float) for name in _NUMBERS)
    flags = all(isinstance(getattr(module, name, None), bool | int) for name in _FLAGS)
    several = module._modules.get("pfn_layers")
    if not (numbers and flags and isinstance(several, nn.ModuleList) and len(several)):
        return None
    layers = [_layer(layer) for layer in several]
    known = tuple(layer for layer in layers if layer is not None)
    return ValidPoints(module, known) if len(known) == len(layers) else None


def _layer(module: nn.Module) -> Layer | None:
    linear, norm = module._modules.get("linear"), module._modules.get("norm")
    use_norm, last = getattr(module, "use_norm", None), getattr(module, "last_vfe", None)
    if not isinstance(linear, nn.Linear) or use_norm is None or last is None:
        return None
    if use_norm and (norm is None or norm.training):
        return None
    return Layer(linear, norm, bool(use_norm), bool(last))
