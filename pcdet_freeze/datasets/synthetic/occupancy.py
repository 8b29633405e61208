"""Occupied ground as rotated rectangles; overlaps are tested with the separating-axis theorem."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.signals.interrupts import uninterrupted


@compiled
def _separated(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """True if an axis of ``a`` separates the rectangles (x, y, cos, sin, half length, half width)."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    cos, sin = abs(a[2] * b[2] + a[3] * b[3]), abs(a[2] * b[3] - a[3] * b[2])
    along, across = abs(dx * a[2] + dy * a[3]), abs(dy * a[2] - dx * a[3])
    return along > a[4] + b[4] * cos + b[5] * sin or across > a[5] + b[4] * sin + b[5] * cos


@uninterrupted
@compiled
def _is_free(taken: NDArray[np.float64], count: int, new: NDArray[np.float64]) -> bool:
    for k in range(count):  # noqa: SIM110 (numba compiles no generator)
        if not (_separated(taken[k], new) or _separated(new, taken[k])):
            return False
    return True


class Occupancy:
    """Occupied rectangles on the ground."""

    def __init__(self, capacity: int = 512) -> None:
        self._taken = np.zeros((capacity, 6))
        self._count = 0

    def take(self, x: float, y: float, yaw: float, length: float, width: float, margin: float = 0.3) -> bool:
        """Occupy a rectangle, enlarged by ``margin`` m on each side; return False if it is not free."""
        new = np.array(
            [x, y, math.cos(yaw), math.sin(yaw), length / 2 + margin, width / 2 + margin], dtype=np.float64
        )
        if self._count == len(self._taken) or not _is_free(self._taken, self._count, new):
            return False
        self._taken[self._count] = new
        self._count += 1
        return True
