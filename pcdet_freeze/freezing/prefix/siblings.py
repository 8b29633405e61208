"""Fuse trainable convolutions that read the same map, such as the 1x1 layers of a head.

Their weights are concatenated in each forward, so each layer keeps its parameters and gets its own gradient.
The backward pass then computes one gradient of the map instead of one a layer. This is worth its code where
that gradient is needed: with ``[vfe, backbone_2d.blocks]`` frozen, a step of kitti_models/pointpillar (grid
432 x 496, one frame) takes 0.795 (quartiles 0.774-0.841) of the time without it, a step of bench/pointpillar
0.843 (0.806-0.898), one of synthetic_models/multi_task 0.97-0.99; with all of backbone_2d frozen 0.975 and
0.985 (process time, one thread, interleaved rounds).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.prefix.fold_bn import kind_of


class Siblings:
    """Convolutions that differ in output channels alone; the first call computes the outputs of all."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = tuple(layer for layer in layers if isinstance(layer, nn.Conv2d))
        self.waiting: dict[int, Tensor] = {}
        """index of a layer -> output that it has not returned yet"""
        self._given: Tensor | None = None

    def forwards(self) -> dict[nn.Module, Any]:
        """module -> the forward that replaces its own."""
        return {layer: self._forward_of(number) for number, layer in enumerate(self.layers)}

    def clear(self) -> None:
        """Drop outputs that no layer returned."""
        self.waiting, self._given = {}, None

    def _forward_of(self, number: int) -> Any:
        def forward(value: Tensor) -> Tensor:
            if value is not self._given:
                self.waiting, self._given = dict(enumerate(self._compute(value))), value
            if number not in self.waiting:  # called again
                return type(self.layers[number]).forward(self.layers[number], value)
            result = self.waiting.pop(number)
            if not self.waiting:
                self._given = None
            return result

        return forward

    def _compute(self, value: Tensor) -> Sequence[Tensor]:
        first = self.layers[0]
        weight = torch.cat([layer.weight for layer in self.layers])
        biases = [layer.bias for layer in self.layers if layer.bias is not None]
        result = first._conv_forward(value, weight, torch.cat(biases) if biases else None)
        return result.split([layer.out_channels for layer in self.layers], dim=1)


def common_shape(layer: nn.Module) -> tuple[Any, ...] | None:
    """The settings in which fused layers must agree; None for a layer that cannot be fused."""
    if kind_of(layer) is not nn.Conv2d or layer.groups != 1:
        return None
    return (
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.padding_mode,
        layer.in_channels,
        layer.bias is not None,
    )
