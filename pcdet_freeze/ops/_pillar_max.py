"""Compiled kernels of :mod:`.pillar_max`."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.ops._arrays import jit
from pcdet_freeze.utils.signals.interrupts import uninterrupted

_NOWHERE, _PADDING = -1, -2


@uninterrupted
@jit
def highest(rows, lengths, points, slots, found, where):  # type: ignore[no-untyped-def]
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


@uninterrupted
@jit
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
