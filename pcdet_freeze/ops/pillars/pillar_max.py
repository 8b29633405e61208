"""The maximum of each pillar over its points and its padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pcdet_freeze.ops.pillars.ragged_kernels import arrays, has_kernels, kernels
from pcdet_freeze.utils.tracing import is_traced

NOWHERE, PADDING = -1, -2
"""in place of a row: none gets a gradient; the padding of the pillar has the maximum"""


def pillar_max(rows: Tensor, lengths: Tensor, pillar_of: Tensor, slots: int, relu: bool = False) -> Tensor:
    """(M, C): maximum over the points of each pillar, and over its padding where it has padding.

    The gradient goes to the first of equal points, and to the padding if it is higher than all points, as
    that of ``torch.max`` over the slots of the padded form.

    Args:
        rows: (N + K, C): points, those of a pillar after each other; then K rows for the padding: one of all
            pillars (K = 1), or one of each pillar (K = M), or none (K = 0, with ``slots`` 0).
        lengths: (M,) int64, points in each pillar.
        pillar_of: (N,) int64, pillar of each point.
        slots: a pillar with fewer points has padding.
        relu: whether negative maxima become 0, without a gradient.
    """
    if torch.is_grad_enabled() and rows.requires_grad and not is_traced():
        highest: Tensor = _PillarMax.apply(rows, lengths, pillar_of, slots, relu)
        return highest
    highest = _highest(rows, lengths, len(pillar_of), slots)
    return F.relu(highest) if relu else highest


class _PillarMax(torch.autograd.Function):
    """Saves the row of each maximum, and none of the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: Tensor, pillar_of: Tensor, slots: int, relu: bool) -> Tensor:
        ctx.rows, ctx.is_compiled = len(rows), has_kernels(rows)
        if ctx.is_compiled:
            highest = rows.new_empty(len(lengths), rows.shape[1])
            where = torch.empty(highest.shape, dtype=torch.int32)
            kernels().highest(*arrays(rows, lengths), len(pillar_of), slots, relu, *arrays(highest, where))
        else:
            highest = _highest(rows, lengths, len(pillar_of), slots)
            where = _where(rows, highest, lengths, pillar_of, slots)
            if relu:
                where = torch.where(highest > 0, where, NOWHERE)
                highest = F.relu(highest)
        ctx.save_for_backward(where, pillar_of)
        return highest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        where, pillar_of = ctx.saved_tensors
        points = len(pillar_of)
        if ctx.is_compiled:
            result = gradient.new_zeros(ctx.rows, gradient.shape[1])
            kernels().spread(*arrays(gradient.contiguous(), where, result), points)
            return result, None, None, None, None
        row = torch.arange(points, device=where.device, dtype=where.dtype).unsqueeze(1)
        # each point has one pillar: read from there, nothing is added up in an order that may change
        own = torch.where(where[pillar_of] == row, gradient[pillar_of], 0)
        if ctx.rows == points:
            return own, None, None, None, None
        padding = torch.where(where == PADDING, gradient, 0)
        if ctx.rows - points == 1:
            padding = padding.sum(dim=0, keepdim=True)
        return torch.cat([own, padding]), None, None, None, None


def _highest(rows: Tensor, lengths: Tensor, points: int, slots: int) -> Tensor:
    highest = torch.segment_reduce(rows[:points], "max", lengths=lengths, unsafe=True)
    if len(rows) == points:
        return highest
    has_padding = (lengths < slots).unsqueeze(1)
    return torch.where(has_padding, torch.maximum(highest, rows[points:]), highest)


def _where(rows: Tensor, highest: Tensor, lengths: Tensor, pillar_of: Tensor, slots: int) -> Tensor:
    """(M, C) int32: the first point with the maximum, or PADDING, or NOWHERE."""
    points = len(pillar_of)
    row = torch.arange(points, device=rows.device, dtype=torch.int32).unsqueeze(1)
    candidates = torch.where(rows[:points] == highest[pillar_of], row, points)
    first = torch.full(highest.shape, points, device=rows.device, dtype=torch.int32)
    first = first.scatter_reduce(0, pillar_of.unsqueeze(1).expand_as(candidates), candidates, "amin")
    if len(rows) == points:
        return torch.where(first < points, first, NOWHERE)
    is_padding = (lengths < slots).unsqueeze(1) & (rows[points:] == highest)
    return torch.where(first < points, first, torch.where(is_padding, PADDING, NOWHERE))
