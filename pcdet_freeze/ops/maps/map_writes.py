"""Convolutions that write their ReLU into some channels of a channels-last map, instead of a concatenation.

They are those that are one matrix product: 1x1, and transposed with kernel = stride. Both compute a block of
cells at a time, so that its values are still in the cache when the ReLU reads them. For code without a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_freeze.ops.maps.map_layout import rows_of

BLOCK = 1 << 17
"""values of the outputs that are computed at once, per thread: 512 kB, half of the cache of a core"""


@torch.no_grad()
def convolve_relu_into(maps: Tensor, weight: Tensor, bias: Tensor, place: Tensor) -> None:
    """ReLU of a 1x1 convolution of a channels-last map with ``weight`` (out, in, 1, 1).

    Args:
        place: (B * H * W, out), memory for the result; its rows may be apart.
    """
    _multiply_into(rows_of(maps), weight.flatten(1).t(), bias, place)


@torch.no_grad()
def spread_relu_into(maps: Tensor, weight: Tensor, bias: Tensor, place: Tensor) -> None:
    """ReLU of a transposed convolution of a channels-last map with ``weight`` (in, out, k, k) and stride k.

    Args:
        place: (B * H * k * W * k, out), memory for the result; its rows may be apart.
    """
    channels, columns, size = weight.shape[0], weight[0].numel(), weight.shape[2]
    matrix = weight.permute(0, 2, 3, 1).reshape(channels, columns)
    if size == 1:
        _multiply_into(rows_of(maps), matrix, bias, place)
        return
    samples, _, height, width = maps.shape
    # a line of cells gives `size` lines of outputs, each `width` groups of `size` cells
    lines = place.unflatten(0, (samples * height, size, width, size)).transpose(1, 2)
    rows, biases = rows_of(maps).view(samples * height, width, channels), bias.repeat(size * size)
    step = max(1, BLOCK * torch.get_num_threads() // (width * columns))
    for begin in range(0, len(lines), step):
        into = lines[begin : begin + step]
        made = torch.addmm(biases, rows[begin : begin + step].flatten(0, 1), matrix)
        torch.clamp_min(made.view(into.shape), 0, out=into)


def _multiply_into(rows: Tensor, matrix: Tensor, bias: Tensor, place: Tensor) -> None:
    step = max(1, BLOCK * torch.get_num_threads() // matrix.shape[1])
    for begin in range(0, len(rows), step):
        into = place[begin : begin + step]
        torch.addmm(bias, rows[begin : begin + step], matrix, out=into).clamp_min_(0)
