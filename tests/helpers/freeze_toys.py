"""Toy detectors for the freeze tests: OpenPCDet's names, sizes that fit on a line."""

from __future__ import annotations

import torch
from torch import nn


def block(width: int = 8, dropout: float = 0.0) -> nn.Sequential:
    """Linear, norm, activation, dropout."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))


class Backbone(nn.Module):
    """blocks run one after another, deblocks on each result."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(dropout=0.3) for _ in range(3)])
        self.deblocks = nn.ModuleList([block() for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for down, up in zip(self.blocks, self.deblocks, strict=True):
            x = down(x)
            out = out + up(x)
        return out


class Detector(nn.Module):
    """vfe -> backbone_2d -> dense_head, with OpenPCDet's step counter."""

    def __init__(self) -> None:
        super().__init__()
        self.vfe = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
        self.map_to_bev_module = nn.Identity()
        self.backbone_2d = Backbone()
        self.dense_head = nn.Linear(8, 2)
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense_head(self.backbone_2d(self.map_to_bev_module(self.vfe(x))))


def points(count: int = 6, width: int = 4, seed: int = 0) -> torch.Tensor:
    """A random batch (count, width)."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, seed: int = 0) -> None:
    """One iteration as OpenPCDet writes it: train(), forward, backward, step."""
    model.train()
    if optimizer is not None:
        optimizer.zero_grad()
    model(points(seed=seed)).square().sum().backward()
    if optimizer is not None:
        optimizer.step()


def state_bits(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the whole state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same_state(module: nn.Module, bits: dict[str, torch.Tensor]) -> bool:
    """Whether the state of ``module`` is ``bits``, bit for bit."""
    now = module.state_dict()
    return now.keys() == bits.keys() and all(torch.equal(now[name], bits[name]) for name in bits)
