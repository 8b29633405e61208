"""Batch norm in training on channels-last maps on the CPU, optionally with the ReLU behind it.

torch sums such maps one cell after the other in float32: on a map of 2 x 64 x 248 x 216 its variance has a
relative error of 1e-5, where the contiguous one has 6e-8. Here each block of cells that fits into the cache
is summed around its own mean, and the blocks are combined in float64 (Chan, Golub and LeVeque, The American
Statistician 37(3), 1983, equation 2.1). Values and gradients are computed block by block as well, so that
each map is read from memory once for its sums and once for its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pcdet_freeze.ops.maps.map_layout import map_of, rows_of

BLOCK = 1 << 17
"""values of a block, per thread: 512 kB, half of the second-level cache of a core"""


class Moments:
    """Mean and variance of each column of ``rows`` (N, C)."""

    def __init__(self, rows: Tensor) -> None:
        blocks = list(_blocks(rows))
        sums, squares = rows.new_empty(2, len(blocks), rows.shape[1])
        room = torch.empty_like(rows[blocks[0]])
        for number, block in enumerate(blocks):
            part = rows[block]
            torch.sum(part, 0, out=sums[number])
            around = torch.sub(part, sums[number] / len(part), out=room[: len(part)])
            torch.sum(around.square_(), 0, out=squares[number])
        lengths = torch.tensor([block.stop - block.start for block in blocks], dtype=torch.float64)
        means = sums.double() / lengths.unsqueeze(1)
        self.count = len(rows)
        self.mean = sums.double().sum(dim=0) / self.count
        between = (means - self.mean).square() * lengths.unsqueeze(1)
        # the sums of a block are around its rounded mean, whose square is too small to count
        self.variance = (squares.double().sum(dim=0) + between.sum(dim=0)) / self.count
        """over N, not N - 1"""


def _blocks(rows: Tensor) -> Iterator[slice]:
    """Consecutive slices of ``rows``, none of them empty."""
    size = max(1, BLOCK * torch.get_num_threads() // rows.shape[1])
    return (slice(begin, min(begin + size, len(rows))) for begin in range(0, len(rows), size))


def batch_norm(norm: nn.BatchNorm2d, maps: Tensor, relu: bool = False, into: Tensor | None = None) -> Tensor:
    """``norm(maps)`` in train mode, and its ReLU, for a map of which ``computes_here`` holds.

    Args:
        norm: in train mode; its running statistics are updated.
        maps: (B, C, H, W) with more than one value a channel.
        relu: whether to apply a ReLU to the result.
        into: (B * H * W, C), memory for the result; its rows may be apart. None: new memory.
    """
    moments = Moments(rows_of(maps.detach()))
    if norm.track_running_stats:
        _update(norm, moments)
    result: Tensor = _BatchNorm.apply(maps, norm.weight, norm.bias, moments, norm.eps, relu, into)
    return result


def _update(norm: nn.BatchNorm2d, moments: Moments) -> None:
    """Add ``moments`` to the running statistics, with the unbiased variance."""
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        factor = 1.0 / float(norm.num_batches_tracked) if factor is None else factor
    unbiased = moments.variance * (moments.count / (moments.count - 1))
    for running, now in ((norm.running_mean, moments.mean), (norm.running_var, unbiased)):
        if running is not None:
            running.mul_(1.0 - (factor or 0.0)).add_(now.to(running.dtype), alpha=factor or 0.0)


class _BatchNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, and max(y, 0) with ``relu``."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: Moments,
        eps: float,
        relu: bool,
        into: Tensor | None,
    ) -> Tensor:
        rows = rows_of(maps)
        inverse = (moments.variance + eps).rsqrt()
        factor = inverse if weight is None else inverse * weight.double()
        offset = -moments.mean * factor if bias is None else bias.double() - moments.mean * factor
        made = torch.empty_like(rows) if into is None else into
        slope, start = factor.to(rows.dtype), offset.to(rows.dtype)
        for block in _blocks(rows):
            part = torch.addcmul(start, rows[block], slope, out=made[block])
            if relu:
                part.clamp_min_(0)
        # .data: no view of `made`, whose version changes when a neighbour is written
        result = map_of(made, maps.shape[0], *maps.shape[2:]).data
        ctx.save_for_backward(maps, weight, result if relu else None)
        ctx.mean, ctx.inverse = moments.mean, inverse
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, result = ctx.saved_tensors
        rows = rows_of(maps)
        masked = _masked(rows_of(gradient), None if result is None else rows_of(result))
        total, along, own = _sums(rows, masked, ctx.mean)
        factor = ctx.inverse if weight is None else ctx.inverse * weight.double()
        of_maps = None
        if ctx.needs_input_grad[0]:
            slope = along * ctx.inverse.square() / len(rows)
            start = total / len(rows) - ctx.mean * slope
            _to_input(rows, own, *(value.to(rows.dtype) for value in (factor, slope, start)))
            of_maps = map_of(own, maps.shape[0], *maps.shape[2:])
        of_weight = (along * ctx.inverse).to(rows.dtype) if ctx.needs_input_grad[1] else None
        of_bias = total.to(rows.dtype) if ctx.needs_input_grad[2] else None
        return of_maps, of_weight, of_bias, None, None, None, None


Masked = Callable[[slice, Tensor], None]
"""writes rows of the gradient of the norm's output into the given memory"""


def _masked(upper: Tensor, made: Tensor | None) -> Masked:
    """The gradient ``upper`` (N, C), zero where the output ``made`` of the ReLU is zero."""

    def write(block: slice, room: Tensor) -> None:
        if made is None:
            room.copy_(upper[block])
        else:
            torch.ops.aten.threshold_backward.grad_input(upper[block], made[block], 0, grad_input=room)

    return write


def _sums(rows: Tensor, masked: Masked, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(C,) float64: sums of the gradient, and of the gradient times (row - mean); and the gradient (N, C)."""
    blocks, middle = list(_blocks(rows)), mean.to(rows.dtype)
    totals, alongs = rows.new_empty(2, len(blocks), rows.shape[1])
    room, own = torch.empty_like(rows[blocks[0]]), torch.empty_like(rows)
    for number, block in enumerate(blocks):
        masked(block, own[block])
        torch.sum(own[block], 0, out=totals[number])
        around = torch.sub(rows[block], middle, out=room[: len(own[block])])
        torch.sum(around.mul_(own[block]), 0, out=alongs[number])
    total = totals.double().sum(dim=0)
    return total, alongs.double().sum(dim=0) - (mean - middle.double()) * total, own


def _to_input(rows: Tensor, own: Tensor, factor: Tensor, slope: Tensor, start: Tensor) -> None:
    """Turn ``own``, the gradient of the output, into (own - start - row * slope) * factor."""
    room = torch.empty_like(rows[next(_blocks(rows))])
    for block in _blocks(rows):
        part = own[block]
        part.sub_(torch.addcmul(start, rows[block], slope, out=room[: len(part)])).mul_(factor)
