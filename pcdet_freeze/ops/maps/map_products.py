"""Convolutions of channels-last maps that are one matrix product: 1x1, and transposed with kernel = stride.

A cell's channels lie side by side, so a 1x1 convolution is a product of the matrix of all cells with the
weights. A transposed convolution whose kernel does not overlap gives each cell's kernel x kernel outputs by
one product too; oneDNN computes it as fast, but its gradient of the weights takes 3 to 7 times as long as the
product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pcdet_freeze.ops.maps.map_layout import map_of, rows_of

ROOM = 1 << 19
"""values of the outputs that are rearranged at once: 2 MB, which fit into the cache"""


def convolve_cells(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution of a channels-last map with ``weight`` (out, in, 1, 1)."""
    return _product(maps, weight.flatten(1), bias)


def _product(maps: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Each cell of (B, in, H, W) times ``matrix`` (out, in)."""
    return map_of(F.linear(rows_of(maps), matrix, bias), maps.shape[0], *maps.shape[2:])


def spread_cells(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Transposed convolution of a channels-last map with ``weight`` (in, out, k, k) and stride k."""
    if weight.shape[2] == 1:
        return _product(maps, weight.flatten(1).t(), bias)  # the gradient has the strides of the weight
    if not torch.is_grad_enabled() or not weight.requires_grad:
        return F.conv_transpose2d(maps, weight, bias, stride=weight.shape[2])
    result: Tensor = _Spread.apply(maps, weight, bias)
    return result


class _Spread(torch.autograd.Function):
    """Transposed convolution with kernel = stride, whose gradients are matrix products."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return F.conv_transpose2d(maps, weight, bias, stride=weight.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        maps, weight = ctx.saved_tensors
        samples, channels, height, width = maps.shape
        size, (needs_maps, needs_weight, needs_bias) = weight.shape[2], ctx.needs_input_grad
        # a line of cells gives `size` lines of outputs, each `width` groups of `size` cells
        lines = rows_of(gradient).unflatten(0, (samples * height, size, width, size))
        columns = size * size * weight.shape[1]
        matrix = weight.permute(0, 2, 3, 1).reshape(channels, columns)
        rows = rows_of(maps)
        of_rows = torch.empty_like(rows) if needs_maps else None
        of_matrix = torch.zeros_like(matrix) if needs_weight else None
        step = max(1, ROOM * torch.get_num_threads() // (width * columns))
        for begin in range(0, samples * height, step):
            part = lines[begin : begin + step].transpose(1, 2).reshape(-1, columns)
            own = slice(begin * width, begin * width + len(part))
            if of_matrix is not None:
                torch.addmm(of_matrix, rows[own].t(), part, out=of_matrix)
            if of_rows is not None:
                torch.mm(part, matrix.t(), out=of_rows[own])
        of_maps = None if of_rows is None else map_of(of_rows, samples, height, width)
        of_weight = None
        if of_matrix is not None:
            of_weight = of_matrix.view(channels, size, size, -1).permute(0, 3, 1, 2).contiguous()
        return of_maps, of_weight, gradient.sum(dim=(0, 2, 3)) if needs_bias else None
