"""Small convolutional detectors, and one training forward of them in each way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import Options, Replanner

Gradients = dict[str, torch.Tensor]


def conv(width_in: int, width: int, kind: type = nn.Conv2d, **options: Any) -> nn.Sequential:
    """Convolution, norm with statistics of its own, ReLU."""
    layers = nn.Sequential(kind(width_in, width, 3, bias=False, **options), nn.BatchNorm2d(width), nn.ReLU())
    norm = layers[1]
    nn.init.normal_(norm.running_mean, std=0.2)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias, std=0.2)
    return layers


class Backbone(nn.Module):
    """OpenPCDet's order of calls: blocks[0], deblocks[0], blocks[1], deblocks[1]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv(3, 8, padding=1), conv(8, 8, padding=1)])
        self.deblocks = nn.ModuleList([conv(8, 4, padding=1), conv(8, 4, padding=1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ups = []
        for down, up in zip(self.blocks, self.deblocks, strict=True):
            x = down(x)
            ups.append(up(x))
        return torch.cat(ups, dim=1)


class Detector(nn.Module):
    """backbone_2d and a head of two 1x1 convolutions on the same map; the loss is a sum of squares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone_2d = Backbone()
        self.head = nn.ModuleDict({"cls": nn.Conv2d(8, 3, 1), "box": nn.Conv2d(8, 5, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.backbone_2d(x)
        return self.head["cls"](features).square().sum() + self.head["box"](features).square().mean()


def image(seed: int = 0, size: int = 6) -> torch.Tensor:
    """(2, 3, size, size)."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def frozen_model(names: Sequence[str], model: nn.Module | None = None) -> nn.Module:
    """The detector in train mode with ``names`` frozen."""
    model = Detector() if model is None else model
    freeze(model, names)
    return model.train()


def gradients(model: nn.Module, fuse: bool | str | None, x: Any = None) -> tuple[float, Gradients, Replanner]:
    """Loss and gradients of one training forward of a copy; ``fuse=None`` runs it as it is written."""
    model = copy.deepcopy(model)
    x = image() if x is None else x
    fast = Replanner(model, Options(bool(fuse) if fuse is None else fuse))
    if fuse is None:
        loss = model(x)
    else:
        fast.prepare(x)
        with fast.fast:
            loss = model(x)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found, fast
