"""How much of a BEV backbone's arithmetic reads cells that no pillar reaches.

Such a cell has the value that it has in a map without pillars: away from the borders one constant for each
channel, since convolutions and norm layers in eval mode do the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError

Row = dict[str, Any]


@dataclass
class _Layer:
    """A convolution and its outputs: of the frames, and of a map without pillars."""

    flops: int = 0
    """multiply-adds times two of the frames' output"""
    outputs: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def measure_empty_space(model: nn.Module, batch: dict[str, Any]) -> list[Row]:
    """Return a row for each block of ``backbone_2d``, and one for all of them.

    ``constant``: share of the block's output cells that equal the value far from any pillar, to the bit;
    ``unreached``: share of those that equal the map without pillars, borders included; ``arithmetic``: share
    of the block's multiply-adds that compute such cells; ``of_all``: share of the block in the arithmetic.

    Args:
        batch: frames without augmentation; the model is run in eval mode.

    Raises:
        ConfigError: the model has no PointPillars backbone.
    """
    value = pillar_map(model, batch)
    pillars, cells = len(batch["voxel_coords"]) / int(batch["batch_size"]), value[0, 0].numel()
    empty = torch.zeros_like(value[:1])
    rows, layers = [], []
    for number, block in enumerate(model.backbone_2d.blocks):  # type: ignore[union-attr, arg-type]
        with _recorded(block) as found:
            value, empty = block(value), block(empty)
        far = empty[:, :, empty.shape[2] // 2, empty.shape[3] // 2, None, None]
        rows.append({"block": f"blocks.{number}", "constant": _equal(value, far)})
        rows[-1] |= {"unreached": _equal(value, empty), **_arithmetic(found)}
        layers += found
    total = _arithmetic(layers)
    for row in rows:
        row["of_all"] = row["flops"] / total["flops"]
    whole = {"block": "all", "constant": None, "unreached": None, **total, "of_all": 1.0}
    return [
        {**row, "pillars": pillars, "cells": cells, "frames": batch["batch_size"]} for row in [*rows, whole]
    ]


@torch.no_grad()
def pillar_map(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """(B, C, H, W): the map that ``backbone_2d`` reads; the model is in eval mode then.

    Raises:
        ConfigError: the model has no PointPillars backbone.
    """
    if not hasattr(getattr(model, "backbone_2d", None), "blocks") or not hasattr(model, "map_to_bev_module"):
        raise ConfigError(
            "this comparison needs a model that scatters pillars to a map, with backbone_2d.blocks; got "
            f"{type(model).__name__}: give another --cfg_file"
        )
    model.eval()
    given: Any = dict(batch)
    for module in (model.vfe, model.map_to_bev_module):
        given = module(given)  # type: ignore[operator]  # modules
    value: Tensor = given["spatial_features"]
    return value


@torch.no_grad()
def block_outputs(model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """(B, C, H, W) of each block of ``backbone_2d``; raises ConfigError as :func:`pillar_map`."""
    value, found = pillar_map(model, batch), list[Tensor]()
    for block in model.backbone_2d.blocks:  # type: ignore[union-attr]
        value = block(value)
        found.append(value)
    return found


def _arithmetic(layers: list[_Layer]) -> Row:
    total = sum(layer.flops for layer in layers)
    saved = sum(layer.flops * _equal(*layer.outputs) for layer in layers)
    return {"flops": total, "arithmetic": saved / total}


def _equal(value: Tensor, other: Tensor) -> float:
    """Share of the cells of (B, C, H, W) in which all channels are equal."""
    return float((value == other).all(dim=1).double().mean())


@contextmanager
def _recorded(block: nn.Module) -> Iterator[list[_Layer]]:
    """Record the outputs of each convolution of ``block`` in two calls."""
    layers: dict[nn.Module, _Layer] = {}

    def leave(module: nn.Conv2d, args: Any, output: Tensor) -> None:
        layer = layers.setdefault(module, _Layer())
        layer.flops = layer.flops or 2 * module.weight[0].numel() * output.numel()
        layer.outputs.append(output)

    handles = [m.register_forward_hook(leave) for m in block.modules() if isinstance(m, nn.Conv2d)]
    found: list[_Layer] = []
    try:
        yield found
    finally:
        found += layers.values()
        for handle in handles:
            handle.remove()
