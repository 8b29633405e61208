"""A PillarVFE and pillars for it; its padded form against the one on valid points."""

from __future__ import annotations

import copy
from typing import Any

import torch
from model_cases import model_config, small_model
from torch import nn

from pcdet_freeze.utils.tensors import relative_error

SLOTS = 5
Pillars = dict[str, Any]


def vfe_of(filters: tuple[int, ...] = (16,), **options: Any) -> Any:
    """A PillarVFE in train mode whose norm layers are not those of a new model."""
    config = model_config()
    config["VFE"] |= {"NUM_FILTERS": list(filters), **options}
    config["MAP_TO_BEV"]["NUM_BEV_FEATURES"] = filters[-1]
    vfe = small_model(config).vfe.train()
    for norm in norms_of(vfe):
        nn.init.normal_(norm.weight)  # a negative factor turns the maximum around
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return vfe


def norms_of(vfe: Any) -> list[Any]:
    return [layer.norm for layer in vfe.pfn_layers if layer.use_norm]


def pillars_of(counts: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Pillars:
    """Pillars with so many points each, in SLOTS slots; some points are equal."""
    counts = torch.as_tensor(counts, dtype=torch.int32)
    draw = torch.Generator().manual_seed(seed)
    voxels = torch.randn(len(counts), SLOTS, 4, generator=draw, dtype=dtype) * 3 + 5
    voxels[: len(counts) // 4, 1:] = voxels[: len(counts) // 4, :1]
    voxels *= (torch.arange(SLOTS) < counts.unsqueeze(1)).unsqueeze(2)
    coords = torch.randint(0, 32, (len(counts), 4), generator=draw, dtype=torch.int32)
    return {"voxels": voxels, "voxel_coords": coords, "voxel_num_points": counts}


def result_of(vfe: Any, pillars: Pillars, ragged: bool) -> dict[str, torch.Tensor]:
    """Features, gradients of a random loss, and buffers after one forward of a copy of ``vfe``."""
    twin = copy.deepcopy(vfe)
    twin.ragged = ragged
    features = twin(dict(pillars))["pillar_features"]
    if features.requires_grad:
        draw = torch.Generator().manual_seed(1)
        (features * torch.randn(features.shape, generator=draw).to(features)).sum().backward()
    gradients = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    return {"features": features.detach(), **gradients, **dict(twin.named_buffers())}


def assert_agree(vfe: Any, pillars: Pillars, tight: float = 1e-6, loose: float = 1e-5) -> None:
    padded, ragged = (result_of(vfe, pillars, form) for form in (False, True))
    assert padded.keys() == ragged.keys()
    parameters = dict(vfe.named_parameters())
    for name, value in padded.items():
        limit = loose if name in parameters else tight
        assert value.dtype == ragged[name].dtype, name
        assert relative_error(value, ragged[name]) <= limit or near_zero(value, ragged[name]), name


def near_zero(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Sums that cancel have no relative error: gradients of few pillars, through the statistics."""
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-6).all())
