"""Columns of the tables that data sets come in: numbers that are finite, texts of a bounded length."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_freeze.errors import DataError

LONGEST = 100
"""characters of a label or id"""


def check_numbers(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return the column ``values`` (N,) if it holds finite numbers, else raise DataError."""
    if len(values) and values.dtype.kind not in "biuf":  # a column without rows has no kind of its own
        raise DataError(
            f"{path}: the column {name} must hold numbers; got {values[0]!r:.100}. Fetch it again"
        )
    if len(values) and not np.isfinite(values).all():
        raise DataError(f"{path}: the column {name} must be finite, but holds NaN or inf. Fetch it again")
    return values


def check_texts(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """The column ``values`` (N,) as an array of str if it holds short texts, else raise DataError."""
    texts = values.tolist()
    if not all(isinstance(text, str) and len(text) <= LONGEST for text in texts):
        raise DataError(f"{path}: the column {name} must hold texts of at most {LONGEST} characters")
    return np.array(texts, dtype=str)
