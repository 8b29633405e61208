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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from pcdet_freeze.ops.ragged_pillars import RaggedPillars

_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


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


def ragged_norm(norm: Any, rows: Tensor, pillars: RaggedPillars) -> Tensor:
    """``norm`` of the padded form (M, C, P), on ``rows`` (R, C) of points and padding.

    The module is called, with another forward, so that its hooks run. In eval mode the result has the bits
    of the padded form on a CPU.

    Args:
        norm: a BatchNorm1d or SyncBatchNorm. A forward that is set on the instance (a folded norm) stays.
    """
    if "forward" in norm.__dict__:
        normalised: Tensor = norm(rows)
        return normalised
    with _forward_of(norm, partial(_normalise, norm, pillars=pillars)):
        normalised = norm(rows)
    return normalised


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


def _normalise(norm: _BatchNorm, rows: Tensor, pillars: RaggedPillars) -> Tensor:
    # as torch decides it
    if norm.training or (norm.running_mean is None and norm.running_var is None):
        with torch.no_grad():
            statistics = _of_batch(norm, rows, pillars)
    else:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        statistics = _Statistics(mean, 1 / torch.sqrt(variance + norm.eps))
    normalised: Tensor = _Normalise.apply(rows, norm.weight, norm.bias, statistics)
    return normalised


def _of_batch(norm: _BatchNorm, rows: Tensor, pillars: RaggedPillars) -> _Statistics:
    """Statistics of all slots of the batch; updates the running statistics."""
    rows, points = _precise(rows), pillars.points
    slots = pillars.padded_slots(len(rows) - points)
    own = len(pillars.lengths) * pillars.slots
    mean = _sum(rows, slots, points) / max(own, 1)
    variance = _sum((rows - mean.to(rows)).square_(), slots, points) / max(own, 1)
    count: Tensor | int = own
    group = _group_of(norm)
    if group is not None:
        mean, variance, count = _of_all_ranks(mean, variance, own, group)
    _update_running(norm, mean, variance, count)
    invstd = 1 / torch.sqrt(variance + norm.eps)
    return _Statistics(mean.to(rows), invstd.to(rows), slots, points, count, group)


def _sum(rows: Tensor, slots: Tensor | int, points: int) -> Tensor:
    """Sum over all slots, in float64: later layers amplify what float32 would round off."""
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
    """Saves its input, as torch's batch norm does."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: _Statistics
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.statistics = statistics
        # the order of torch's kernel for strided tensors, which the padded form runs
        result = _precise(rows).sub(statistics.mean).mul_(statistics.invstd)
        result = result if weight is None else result.mul_(weight)
        return (result if bias is None else result.add_(bias)).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (rows, weight), known = ctx.saved_tensors, ctx.statistics
        gradient = _precise(gradient)
        standard = _precise(rows).sub(known.mean).mul_(known.invstd)
        for_weight = (gradient * standard).sum(dim=0, dtype=torch.float64)
        for_bias = gradient.sum(dim=0, dtype=torch.float64)
        for_rows = None
        if ctx.needs_input_grad[0]:
            for_rows = _for_rows(gradient, standard, torch.stack([for_bias, for_weight]), known)
            for_rows.mul_(known.invstd if weight is None else known.invstd * weight)
            for_rows = for_rows.to(rows.dtype)
        own = (for_weight.to(known.mean.dtype), for_bias.to(known.mean.dtype))
        of_weight, of_bias = (g if ctx.needs_input_grad[1 + i] else None for i, g in enumerate(own))
        return for_rows, of_weight, of_bias, None


def _for_rows(gradient: Tensor, standard: Tensor, sums: Tensor, known: _Statistics) -> Tensor:
    """Gradient of the rows, before the factor of their channel; overwrites ``standard``.

    The statistics depend on each slot: a row of the padding has the share of all its slots.
    """
    if known.slots is None:
        return gradient.clone()
    if known.group is not None:
        dist.all_reduce(sums, group=known.group)
    first, second = (sums / known.count).to(standard)
    share = standard.mul_(second).add_(first)
    share[known.points :].mul_(known.slots)
    return share.neg_().add_(gradient)
