"""Convolution of a map that pillars were scattered into: the backward pass scatters them again.

The gradient of the weights needs the map, which is the largest that a step would keep: 110 MB for two frames
of KITTI's grid, of which one cell in fifty holds a pillar. The pillars have 7 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pcdet_freeze.ops.maps.map_layout import is_channels_last, map_of
from pcdet_freeze.utils.devices import autocast_is_on
from pcdet_freeze.utils.tracing import is_traced


@dataclass(frozen=True)
class _Pillars:
    """What a map consists of."""

    features: Tensor
    """(M, C) without graph"""
    cells: Tensor
    """(M,) int64, flat index (sample, row, column); each cell once"""
    version: int
    """of the map, when it was made"""


def scatter(features: Tensor, cells: Tensor, samples: int, height: int, width: int) -> Tensor:
    """(M, C) -> (samples, C, height, width), a channels-last map that is zero elsewhere."""
    canvas = features.new_zeros(samples * height * width, features.shape[1])
    canvas[cells] = features
    return map_of(canvas, samples, height, width)


def keep_pillars(maps: Tensor, features: Tensor, cells: Tensor) -> Tensor:
    """Note that ``maps`` is :func:`scatter` of these; returns ``maps``."""
    if torch.is_grad_enabled() and not maps.is_inference():
        maps.pillars = _Pillars(features.detach(), cells, maps._version)  # type: ignore[attr-defined]
    return maps


def has_pillars(maps: Tensor) -> bool:
    """Whether :func:`keep_pillars` has noted what ``maps`` consists of."""
    return getattr(maps, "pillars", None) is not None


def convolve(maps: Tensor, conv: nn.Conv2d, padding: tuple[int, int]) -> Tensor:
    """Output of ``conv`` with ``padding``; values and gradients are those of torch, to the bit."""
    pillars: _Pillars | None = getattr(maps, "pillars", None)
    options = conv.stride, padding, conv.dilation, conv.groups
    if pillars is None or pillars.version != maps._version or not _saves(maps, conv.weight):
        return F.conv2d(maps, conv.weight, conv.bias, *options)
    result: Tensor = _Convolve.apply(maps, conv.weight, conv.bias, pillars.features, pillars.cells, *options)
    return result


def _saves(maps: Tensor, weight: Tensor) -> bool:
    """Whether torch would keep the map for the backward pass, as it is."""
    kept = torch.is_grad_enabled() and weight.requires_grad and is_channels_last(maps)
    return kept and not is_traced() and not autocast_is_on(maps.device.type)


class _Convolve(torch.autograd.Function):
    """Saves the pillars instead of the map."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        features: Tensor,
        cells: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(weight, features, cells)
        ctx.shape, ctx.channels = maps.shape, None if bias is None else bias.shape
        ctx.options = stride, padding, dilation, groups
        return F.conv2d(maps, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, features, cells = ctx.saved_tensors
        samples, _, height, width = ctx.shape
        stride, padding, dilation, groups = ctx.options
        maps = scatter(features, cells, samples, height, width)
        found = torch.ops.aten.convolution_backward(
            gradient,
            maps,
            weight,
            ctx.channels,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            ctx.needs_input_grad[:3],
        )
        return *found, None, None, None, None, None, None
