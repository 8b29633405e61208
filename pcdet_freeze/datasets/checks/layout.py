"""Which layout the numbers of a raw point file have: columns of a point, and type of a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLUMNS = range(3, 9)
CLEAR = 0.5
"""nats by which another number of columns must explain the numbers better"""
SURE = 0.99
"""share of numbers that can be coordinates or intensities, in a file that is read in the right type"""
_TYPES = {"<f8": "float64", ">f4": "big-endian float32", "<f2": "float16", "<i4": "int32", "<i2": "int16"}
_LEAST, _MOST = 1e-6, 1e5
_FEW = 50


@dataclass(frozen=True)
class Layout:
    """``columns`` numbers of the type ``dtype`` for each point."""

    dtype: str
    columns: int

    def __str__(self) -> str:
        return f"{self.columns} columns of {_TYPES.get(self.dtype, 'float32')}"


def other_layout(raw: bytes, columns: int) -> Layout | None:
    """The layout that fits ``raw`` clearly better than ``columns`` little-endian float32; None: none does."""
    values = np.frombuffer(raw[: len(raw) // 4 * 4], "<f4")
    if len(values) < columns * _FEW:
        return None
    if plausible(values) < SURE:
        return _other_type(raw, plausible(values))
    costs = {number: cost(values, number) for number in {columns, *COLUMNS}}
    # twice the columns describe a file as well: the smallest of equally good ones
    best = min(costs, key=lambda number: round(costs[number], 1))
    return Layout("<f4", best) if costs[columns] - costs[best] > CLEAR else None


def plausible(values: np.ndarray) -> float:
    """Share of ``values`` that can be coordinates, intensities or ring numbers."""
    with np.errstate(all="ignore"):
        size = np.abs(values)
        return float(((size == 0) | ((size > _LEAST) & (size < _MOST))).mean())


def cost(values: np.ndarray, columns: int) -> float:
    """Mean entropy of a column in nats, if it were normal: the mean logarithm of its standard deviation.

    In the right layout each column has one kind of number: z varies by a metre, x by tens of metres. In a
    wrong one each column mixes all kinds.
    """
    rows = values[: len(values) // columns * columns].reshape(-1, columns)
    with np.errstate(all="ignore"):  # a few numbers may be NaN or inf, which their own error names
        spread = rows.astype(np.float64).std(axis=0)
    return float(np.log(np.maximum(np.nan_to_num(spread, nan=1e9, posinf=1e9), 0.01)).mean())


def _other_type(raw: bytes, here: float) -> Layout | None:
    shares = {}
    for dtype in ("<f8", ">f4"):
        size = np.dtype(dtype).itemsize
        values = np.frombuffer(raw[: len(raw) // size * size], dtype)
        shares[dtype] = plausible(values), values
    dtype, (share, values) = max(shares.items(), key=lambda item: item[1][0])
    if share < SURE or share <= here:
        return None
    return Layout(dtype, min(COLUMNS, key=lambda number: round(cost(values, number), 1)))
