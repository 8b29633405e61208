"""Batch norm of a padded tensor, on its valid rows and a few rows that represent the padding.

Mean and variance over all slots follow from sums over the valid rows and from the rows of the padding, each
counted as many times as there are slots that it represents (Ioffe and Szegedy, arXiv:1502.03167, with
weights). The variance is a sum of squares of differences from the mean, which loses no digits where the mean
is large. The gradient of a row of the padding is the sum over its slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pcdet_freeze.ops.pillars.ragged_kernels import arrays, has_kernels, kernels
from pcdet_freeze.ops.pillars.ragged_pillars import RaggedPillars
from pcdet_freeze.utils.devices import has_cpu_forms

_SIXTEEN_BITS = (torch.float16, torch.bfloat16)
BLOCK = 1 << 17
"""values of a block, per thread: 512 kB, half of the second-level cache of a core"""


@dataclass(frozen=True)
class _Statistics:
    """What rows are normalised with, and how they count in it."""

    mean: Tensor
    """(C,)"""
    invstd: Tensor
    """(C,), inverse standard deviation"""
    slots: Tensor | int | None = None
    """slots that each row of the padding stands for, (K, 1) or one number; None: fixed statistics"""
    points: int = 0
    """rows before those of the padding"""
    count: Tensor | int = 1
    """values per channel, of all ranks"""
    group: Any = None
    """process group of a SyncBatchNorm"""


def ragged_norm(layer: Any, given: Tensor, rows: Tensor, pillars: RaggedPillars) -> Tensor:
    """``layer.norm`` of the padded form (M, C, P), on rows (R, C) of points and padding.

    The norm is called, with another forward, so that its hooks run. In eval mode the result has the bits of
    the padded form on a CPU.

    Args:
        layer: a PFN layer whose ``norm`` is a BatchNorm1d or SyncBatchNorm. A forward that is set on the
            instance (a folded norm) stays.
        given: (R, C_in), input of ``layer.linear``. The backward pass computes the rows from it again, where
            the layer is as torch has it: they are many, and quickly computed.
        rows: output of ``layer.linear``.
    """
    norm, linear = layer.norm, layer.linear
    if "forward" in norm.__dict__:
        normalised: Tensor = norm(rows)
        return normalised
    changed = linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__
    again = () if changed or type(linear) is not nn.Linear else (given, linear.weight, linear.bias)
    with _forward_of(norm, partial(_normalise, norm, again, pillars=pillars)):
        normalised = norm(rows)
    return normalised


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


def _normalise(norm: _BatchNorm, again: tuple[Tensor, ...], rows: Tensor, pillars: RaggedPillars) -> Tensor:
    # as torch decides it
    if norm.training or (norm.running_mean is None and norm.running_var is None):
        with torch.no_grad():
            statistics = _of_batch(norm, rows, pillars)
    else:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        statistics = _Statistics(mean, 1 / torch.sqrt(variance + norm.eps))
    normalised: Tensor = _Normalise.apply(rows, norm.weight, norm.bias, statistics, *again)
    return normalised


def _of_batch(norm: _BatchNorm, rows: Tensor, pillars: RaggedPillars) -> _Statistics:
    """Statistics of all slots of the batch; updates the running statistics."""
    rows, points = _precise(rows), pillars.points
    slots = pillars.padded_slots(len(rows) - points)
    ordered = bool(pillars.slots) and len(pillars.lengths) > 0 and has_kernels(rows)
    mean, variance = _in_order(rows, pillars) if ordered else _in_float64(rows, slots, pillars)
    count: Tensor | int = pillars.values
    group = _group_of(norm)
    if group is not None:
        mean, variance, count = _of_all_ranks(mean, variance, pillars.values, group)
    _update_running(norm, mean, variance, count)
    invstd = 1 / torch.sqrt(variance + norm.eps)
    return _Statistics(mean.to(rows), invstd.to(rows), slots, points, count, group)


def _in_order(rows: Tensor, pillars: RaggedPillars) -> tuple[Tensor, Tensor]:
    """Mean and variance, float64, of a CPU batch; the mean has the bits of that of all slots in torch.

    Later layers amplify the last bit of a mean to 1e-3 of a gradient. So the sums have the order of torch's
    own, for layers whose width is a multiple of four vectors of the CPU (64 channels with AVX-512).
    """
    total, squares = rows.new_empty(rows.shape[1]), rows.new_empty(rows.shape[1], dtype=torch.float64)
    step = 1 << max(4, (pillars.values - 1).bit_length() // 4)
    given = *arrays(rows, pillars.lengths), pillars.points, pillars.slots
    kernels().slot_sums(*given, step, *arrays(total))
    mean = (total / pillars.values).double()
    kernels().slot_squares(*given, *arrays(mean, squares))
    return mean, squares / pillars.values


def _in_float64(rows: Tensor, slots: Tensor | int, pillars: RaggedPillars) -> tuple[Tensor, Tensor]:
    """Mean and variance, float64, by operators of torch."""
    count = max(pillars.values, 1)
    mean = _sum(rows, slots, pillars.points) / count
    return mean, _sum((rows - mean.to(rows)).square_(), slots, pillars.points) / count


def _sum(rows: Tensor, slots: Tensor | int, points: int) -> Tensor:
    own = rows[:points].sum(dim=0, dtype=torch.float64)
    return own + (rows[points:].double() * slots).sum(dim=0)


def _precise(value: Tensor) -> Tensor:
    return value.float() if value.dtype in _SIXTEEN_BITS else value


def _group_of(norm: _BatchNorm) -> Any:
    """The process group of a SyncBatchNorm in train mode, where there are several ranks."""
    if not (isinstance(norm, nn.SyncBatchNorm) and norm.training):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _of_all_ranks(mean: Tensor, variance: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count over all ranks, from their sums: one all-reduce, in float64."""
    sums = torch.stack([mean, variance + mean.square(), torch.ones_like(mean)]) * count
    dist.all_reduce(sums, group=group)
    total, squares, counts = sums
    counts = counts.clamp(min=1)  # where no rank has a pillar, nothing is normalised
    common = total / counts
    return common, (squares / counts - common.square()).clamp(min=0), counts


def _update_running(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """As torch does: variance divided by n - 1; ``momentum: None`` is the average of all steps."""
    if not (norm.training and norm.track_running_stats):
        return
    if not isinstance(count, Tensor) and count < 2:  # one value has no variance
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    share: Any = norm.momentum
    if share is None:
        share = 0.0 if norm.num_batches_tracked is None else 1.0 / norm.num_batches_tracked.to(mean)
    if isinstance(count, Tensor):  # of all ranks: one value has no variance
        share, count = torch.where(count > 1, share, 0.0), count.clamp(min=2)
    unbiased = variance * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        if running is not None:
            running.copy_(running.double() * (1 - share) + new * share)


class _Normalise(torch.autograd.Function):
    """Saves the input of the linear layer before it, which that layer saves too, or else its own."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: _Statistics,
        *again: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(weight, *(again or (rows,)))
        ctx.statistics, ctx.dtype = statistics, rows.dtype
        given = _precise(rows)
        result = torch.empty_like(given)
        for block in _blocks(given, statistics.points):
            # the order of torch's kernel for strided tensors, which the padded form runs
            part = torch.sub(given[block], statistics.mean, out=result[block]).mul_(statistics.invstd)
            part = part if weight is None else part.mul_(weight)
            part = part if bias is None else part.add_(bias)
        return result.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight, *saved), known = ctx.saved_tensors, ctx.statistics
        again: Any = (None if tensor is None else tensor.to(ctx.dtype) for tensor in saved)
        rows = saved[0] if len(saved) == 1 else F.linear(*again)
        gradient = _precise(gradient)
        standard, sums = _standardised(_precise(rows), gradient, known)
        # copies: the sums are added over all ranks below
        for_bias, for_weight = sums.to(known.mean.dtype, copy=True)
        for_rows = None
        if ctx.needs_input_grad[0]:
            factor = known.invstd if weight is None else known.invstd * weight
            for_rows = _for_rows(gradient, standard, sums, factor, known).to(ctx.dtype)
        own = (for_weight, for_bias)
        of_weight, of_bias = (g if ctx.needs_input_grad[1 + i] else None for i, g in enumerate(own))
        return for_rows, of_weight, of_bias, *[None] * (1 if len(saved) == 1 else 4)


def _blocks(rows: Tensor, points: int) -> list[slice]:
    """Slices of ``rows`` (R, C) that fit into a cache of the CPU, those of points and of padding apart.

    On other devices each of the two parts is one slice: there the host would launch more kernels.
    """
    size = max(1, BLOCK * torch.get_num_threads() // rows.shape[1]) if has_cpu_forms(rows) else max(points, 1)
    begins = [*range(0, points, size), points]
    return [slice(*ends) for ends in (*pairwise(begins), (points, len(rows)))]


def _standardised(rows: Tensor, gradient: Tensor, known: _Statistics) -> tuple[Tensor, Tensor]:
    """Standardised rows, and the sums (2, C) in float64 of the gradient, and of its product with them.

    A sum in float64 first copies its rows to float64, which is slow where the copy does not fit in a cache.
    """
    standard, sums = torch.empty_like(rows), rows.new_zeros(2, rows.shape[1], dtype=torch.float64)
    for block in _blocks(rows, known.points):
        part, upper = torch.sub(rows[block], known.mean, out=standard[block]), gradient[block]
        part.mul_(known.invstd)
        sums[0] += upper.sum(dim=0, dtype=torch.float64)
        sums[1] += (upper * part).sum(dim=0, dtype=torch.float64)
    return standard, sums


def _for_rows(gradient: Tensor, standard: Tensor, sums: Tensor, factor: Tensor, known: _Statistics) -> Tensor:
    """Gradient of the rows, with the ``factor`` (C,) of their channel; overwrites ``standard``.

    The statistics depend on each slot: a row of the padding has the share of all its slots.
    """
    if known.slots is None:
        return gradient * factor
    if known.group is not None:
        dist.all_reduce(sums, group=known.group)
    first, second = (sums / known.count).to(standard)
    for block in _blocks(standard, known.points):
        share = standard[block].mul_(second).add_(first)
        if block.start == known.points:
            share.mul_(known.slots)
        share.neg_().add_(gradient[block]).mul_(factor)
    return standard
