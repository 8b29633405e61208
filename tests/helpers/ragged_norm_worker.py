"""One of two gloo processes: a PillarVFE with SyncBatchNorm, against one process; writes OUT/errors.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ragged_cases import Pillars, near_zero, norms_of, pillars_of, result_of, vfe_of
from torch import nn

from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.tensors import relative_error

COUNTS = [1, 2, 3, 5, 1, 1, 4, 2] * 8
SPLITS = {"even": 32, "uneven": 3, "all on one rank": 64, "nothing": 0, "float64": 5}


def part_of(pillars: Pillars, first: int, rank: int) -> Pillars:
    own = slice(0, first) if rank == 0 else slice(first, None)
    return {key: value[own] for key, value in pillars.items()}


def on_two_ranks(vfe: Any, pillars: Pillars, first: int, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients summed over the ranks, running statistics, and this rank's features."""
    vfe = nn.SyncBatchNorm.convert_sync_batchnorm(vfe)
    rank = distributed.rank()
    features = vfe(part_of(pillars, first, rank))["pillar_features"]
    own = weight[:first] if rank == 0 else weight[first:]
    (features * own).sum().backward()
    for parameter in vfe.parameters():
        dist.all_reduce(parameter.grad)
    gradients = {name: parameter.grad for name, parameter in vfe.named_parameters()}
    return {"features": features.detach(), **gradients, **dict(vfe.named_buffers())}


def compare(filters: tuple[int, ...], first: int, dtype: torch.dtype) -> dict[str, float]:
    pillars = pillars_of(COUNTS if first else [], dtype=dtype)
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(len(pillars["voxels"]), filters[-1], generator=draw).to(dtype)
    vfe = vfe_of(filters).to(dtype)
    for norm in norms_of(vfe):
        norm.momentum = None if first == 3 else 0.1
    wanted = result_of(vfe, pillars, ragged=False)
    found = on_two_ranks(vfe, pillars, first, weight)
    rank = distributed.rank()
    wanted["features"] = wanted["features"][:first] if rank == 0 else wanted["features"][first:]
    if not first:  # one process leaves everything alone, two count the batch
        wanted = {name: value for name, value in wanted.items() if "tracked" not in name}
    return {
        name: 0.0 if near_zero(value, found[name]) else relative_error(value, found[name])
        for name, value in wanted.items()
    }


def main() -> None:
    world = distributed.start("pytorch", device="cpu")
    errors = {}
    for filters in ((16,), (16, 16)):
        for name, first in SPLITS.items():
            dtype = torch.float64 if name == "float64" else torch.float32
            own = compare(filters, first, dtype)
            gathered = distributed.gather(own)
            errors[f"{name}, {filters}"] = {key: max(one[key] for one in gathered) for key in own}
    if world.is_main:
        torch.save(errors, Path(sys.argv[1]) / "errors.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
