"""Compiled kernels of :mod:`.pillar_max` and :mod:`.ragged_norm`."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.signals.interrupts import uninterrupted

_NOWHERE, _PADDING = -1, -2


@uninterrupted
@compiled
def highest(rows, lengths, points, slots, relu, found, where):  # type: ignore[no-untyped-def]
    """Write the maximum of each pillar (M, C), and the row that has it, into ``found`` and ``where``."""
    pillars, width = found.shape
    shared = len(rows) == points + 1
    row = 0
    for pillar in range(pillars):
        for c in range(width):
            found[pillar, c] = -np.inf
            where[pillar, c] = _NOWHERE
        for _ in range(lengths[pillar]):
            for c in range(width):
                value = rows[row, c]
                if value > found[pillar, c] or value != value:  # NaN stays, as in torch.max
                    found[pillar, c] = value
                    where[pillar, c] = row
            row += 1
        if lengths[pillar] < slots:
            padding = points if shared else points + pillar
            for c in range(width):
                value = rows[padding, c]
                if value > found[pillar, c] or value != value:
                    found[pillar, c] = value
                    where[pillar, c] = _PADDING
        if relu:
            for c in range(width):
                if found[pillar, c] <= 0:
                    found[pillar, c] = 0
                    where[pillar, c] = _NOWHERE


@uninterrupted
@compiled
def spread(gradient, where, result, points):  # type: ignore[no-untyped-def]
    """Add the gradient of each maximum to its row of ``result``, which is zero before."""
    pillars, width = gradient.shape
    shared = len(result) == points + 1
    total = np.zeros(width, np.float64)  # of up to all pillars: float32 would lose digits
    for pillar in range(pillars):
        for c in range(width):
            row = where[pillar, c]
            if row >= 0:
                result[row, c] = gradient[pillar, c]
            elif row == _PADDING:
                if shared:
                    total[c] += gradient[pillar, c]
                else:
                    result[points + pillar, c] = gradient[pillar, c]
    if shared:
        for c in range(width):
            result[points, c] = total[c]


@compiled
def _end_block(block, step, sums):  # type: ignore[no-untyped-def]
    """Carry the sum of a block to the next level, and full levels on."""
    number = block + 1
    for level in range(1, len(sums)):
        for c in range(sums.shape[1]):
            sums[level, c] += sums[level - 1, c]
            sums[level - 1, c] = 0
        if number % step:
            break
        number //= step


@uninterrupted
@compiled
def slot_sums(rows, lengths, points, slots, step, total):  # type: ignore[no-untyped-def]
    """Write the sums over all slots (C,) into ``total``, added up in the order of ``torch.sum``.

    torch adds up blocks of ``step`` rows, blocks of ``step`` blocks, and so on, on four levels. A slot of
    zeros changes no sum, so it is left out.
    """
    width = rows.shape[1]
    sums = np.zeros((4, width), rows.dtype)
    blocks = len(lengths) * slots // step
    shared = len(rows) == points + 1
    pads = bool((rows[points:] != 0).any())
    block = row = 0
    for pillar in range(len(lengths)):
        for place in range(slots if pads else lengths[pillar]):
            slot = pillar * slots + place
            while block < blocks and block < slot // step:
                _end_block(block, step, sums)
                block += 1
            if place < lengths[pillar]:
                source = row
                row += 1
            else:
                source = points if shared else points + pillar
            for c in range(width):
                sums[0, c] += rows[source, c]
    while block < blocks:
        _end_block(block, step, sums)
        block += 1
    for c in range(width):
        total[c] = sums[0, c] + sums[1, c] + sums[2, c] + sums[3, c]


@uninterrupted
@compiled
def slot_squares(rows, lengths, points, slots, mean, total):  # type: ignore[no-untyped-def]
    """Write the sums of squared differences from ``mean`` over all slots (C,), float64, into ``total``."""
    width = rows.shape[1]
    shared = len(rows) == points + 1
    total[:] = 0
    for row in range(points):
        for c in range(width):
            difference = np.float64(rows[row, c]) - mean[c]
            total[c] += difference * difference
    empty = len(lengths) * slots - points
    for row in range(points, len(rows)):
        times = empty if shared else slots - lengths[row - points]
        for c in range(width):
            difference = np.float64(rows[row, c]) - mean[c]
            total[c] += times * (difference * difference)
