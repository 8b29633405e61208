"""Convolutions that read the same map, computed as one: a head's 1x1 layers, or its branches' first ones.

Their weights are laid one behind the other for the time of a forward, so each keeps its own parameters and
gets its own gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Siblings:
    """Layers of one shape but for their output channels; the first one that is called computes all."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = tuple(layer for layer in layers if isinstance(layer, nn.Conv2d))
        self.waiting: dict[int, Tensor] = {}
        """results that have not been asked for, by the layer's number"""
        self._given: Tensor | None = None

    def forwards(self) -> dict[nn.Module, Any]:
        """What to call in place of each module's forward."""
        return {layer: self._forward_of(number) for number, layer in enumerate(self.layers)}

    def clear(self) -> None:
        """Let go of what was not asked for."""
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
    """What layers must agree in to be computed as one; None for a layer that cannot be."""
    if type(layer) is not nn.Conv2d or layer.groups != 1:
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
