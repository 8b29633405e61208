"""Layers of BEV maps: those of torch, with faster forms for channels-last maps (see ``ops/maps``).

On any other map each layer computes what its base class computes, to the bit. The names of parameters,
buffers and ``state_dict`` keys are those of the base class, and weights stay contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from pcdet_freeze.ops.maps.map_layout import computes_here, is_channels_last, lies_in_rows, map_of, rows_of
from pcdet_freeze.ops.maps.map_norm import batch_norm
from pcdet_freeze.ops.maps.map_products import convolve_cells, spread_cells
from pcdet_freeze.ops.maps.scattered import convolve, has_pillars
from pcdet_freeze.utils.foreign_code import has_foreign_code, has_hooks


class Conv2d(nn.Conv2d):
    """Conv2d whose 1x1 form is a matrix product on channels-last maps."""

    computes_as: ClassVar[type[nn.Module]] = nn.Conv2d

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_single and computes_here(input):
            return convolve_cells(input, weight, bias)
        return super()._conv_forward(input, weight, bias)

    @property
    def is_single(self) -> bool:
        """Whether each output reads one cell, at its own place."""
        plain = self.groups == 1 and self.padding == (0, 0)
        return plain and self.kernel_size == (1, 1) and self.stride == (1, 1)


class ConvTranspose2d(nn.ConvTranspose2d):
    """ConvTranspose2d whose gradients are matrix products on channels-last maps, where kernel = stride."""

    computes_as: ClassVar[type[nn.Module]] = nn.ConvTranspose2d

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        plain = (self.padding, self.output_padding, self.dilation) == ((0, 0), (0, 0), (1, 1))
        square = self.kernel_size == self.stride and self.stride[0] == self.stride[1] and self.groups == 1
        if plain and square and output_size is None and computes_here(input):
            return spread_cells(input, self.weight, self.bias)
        return super().forward(input, output_size)


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in train mode are exact on channels-last maps."""

    computes_as: ClassVar[type[nn.Module]] = nn.BatchNorm2d

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(self, input) if self._takes(input) else super().forward(input)

    def forward_relu(self, maps: Tensor, into: Tensor | None = None) -> Tensor:
        """The ReLU of ``forward``, equal to the bit; see :func:`batch_norm` for ``into``."""
        if self._takes(maps):
            return batch_norm(self, maps, relu=True, into=into)
        return F.relu_(super().forward(maps))

    @property
    def is_own(self) -> bool:
        """Whether a call runs ``forward`` of this class and nothing else."""
        return type(self).forward is BatchNorm2d.forward and is_bare(self)

    def _takes(self, maps: Tensor) -> bool:
        several = maps.numel() > maps.shape[1]
        return self.training and several and maps.shape[1] == self.num_features and computes_here(maps)


class MapSequential(nn.Sequential):
    """Sequential that runs pairs of layers as one on channels-last maps, with the same result to the bit.

    A ZeroPad2d before a convolution becomes that convolution's padding, and a norm writes the output of the
    ReLU behind it. Layers with hooks, or with a forward on the instance, are called as they are.
    """

    computes_as: ClassVar[type[nn.Module]] = nn.Sequential

    def forward(self, input: Any) -> Any:
        return self._run(list(self), input, None)

    def forward_into(self, maps: Tensor, rows: Tensor) -> Tensor:
        """``forward`` whose result lies in ``rows`` (B * H * W, C) where :meth:`can_write` holds."""
        if not self[-2].training:
            value = self._run(list(self)[:-1], maps, None)
            torch.clamp_min(rows_of(value), 0, out=rows)
            return map_of(rows, value.shape[0], *value.shape[2:])
        result: Tensor = self._run(list(self), maps, rows)
        return result

    def can_write(self, maps: Tensor) -> bool:
        """Whether the last layers are a norm and its ReLU, which write where they are to.

        They do so in train mode, and without a graph in eval mode, where the norm may be folded.
        """
        if len(self) < 2 or not is_bare(self) or not computes_here(maps):
            return False
        norm, relu = self[-2], self[-1]
        if not norm.training:
            return not torch.is_grad_enabled() and type(relu) is nn.ReLU and not has_foreign_code(relu)
        return isinstance(norm, BatchNorm2d) and norm.training and _is_norm_relu(norm, relu)

    def _run(self, layers: Sequence[nn.Module], value: Any, into: Tensor | None) -> Any:
        number = 0
        while number < len(layers):
            following = layers[number + 1] if number + 1 < len(layers) else None
            own = into if number + 2 == len(layers) else None
            pair = None if following is None else _joint(layers[number], following, value, own)
            value = _called(layers[number], value) if pair is None else pair
            number += 1 if pair is None else 2
        return value


def _called(layer: nn.Module, value: Any) -> Any:
    plain = type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and is_bare(layer)
    if plain and isinstance(value, Tensor) and has_pillars(value) and isinstance(layer.padding, tuple):
        return convolve(value, layer, layer.padding)  # type: ignore[arg-type]
    return layer(value)


def _joint(first: nn.Module, second: nn.Module, maps: Any, into: Tensor | None) -> Tensor | None:
    """Output of two layers run as one; None where they are to be called one by one."""
    if not isinstance(maps, Tensor) or not lies_in_rows(maps):
        return None
    if isinstance(first, BatchNorm2d) and _is_norm_relu(first, second):
        return first.forward_relu(maps, into)
    if not is_channels_last(maps):
        return None
    if type(first) is nn.ZeroPad2d and type(second) is nn.Conv2d and is_bare(first) and is_bare(second):
        return _padded(first, second, maps)
    return None


def _is_norm_relu(norm: BatchNorm2d, relu: nn.Module | None) -> bool:
    return type(relu) is nn.ReLU and is_bare(relu) and norm.is_own


def _padded(pad: nn.ZeroPad2d, conv: nn.Conv2d, maps: Tensor) -> Tensor | None:
    left, right, top, bottom = pad.padding
    if conv.padding != (0, 0) or left != right or top != bottom or min(left, top) < 0:
        return None
    return convolve(maps, conv, (top, left))


def norm_relu(norm: nn.Module, maps: Tensor) -> Tensor:
    """``relu(norm(maps))``."""
    if isinstance(norm, BatchNorm2d) and lies_in_rows(maps) and norm.is_own:
        return norm.forward_relu(maps)
    result: Tensor = norm(maps)
    return F.relu(result)


def run_together(convs: Sequence[nn.Module], maps: Tensor) -> list[Tensor]:
    """Output of each convolution on the same map; 1x1 convolutions of a channels-last map in one product.

    Its gradient of the map is then one product too, where that of single convolutions is one a layer.
    """
    if len(convs) < 2 or not computes_here(maps) or not all(map(_is_single, convs)):
        return [conv(maps) for conv in convs]
    weights: list[Tensor] = [conv.weight for conv in convs]  # type: ignore[misc]
    biases: list[Tensor | None] = [conv.bias for conv in convs]  # type: ignore[misc]
    given = [bias for bias in biases if bias is not None]
    kinds = {tensor.requires_grad for tensor in (*weights, *given)}
    if len(kinds) > 1 or len(given) not in (0, len(convs)):
        return [conv(maps) for conv in convs]
    rows = convolve_cells(maps, torch.cat(weights), torch.cat(given) if given else None)
    return list(rows.split([len(weight) for weight in weights], dim=1))


def _is_single(conv: nn.Module) -> bool:
    return type(conv) is Conv2d and conv.is_single and is_bare(conv)


def is_bare(module: nn.Module) -> bool:
    """Whether a call of ``module`` is its class's forward alone: no hooks, no forward on the instance."""
    everywhere = (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )
    return not has_hooks(module) and not any(map(bool, everywhere))
