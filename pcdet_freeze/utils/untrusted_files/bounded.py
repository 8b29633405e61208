"""Refuse values that are small in a file, but without bound for code that walks over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 50
"""levels of nested containers"""
FEW_VALUES, VALUES_PER_BYTE = 100_000, 10
"""values that a file of any size may hold, and further ones for each of its bytes"""


def check_bounded(value: Any, size: int) -> None:
    """Raise ValueError where ``value``, read from a file of ``size`` bytes, is nested or repeated too often.

    A container that several others refer to counts each time: forty levels of doubled references are 2**40
    values. The check itself visits each container once.
    """
    Counter(FEW_VALUES + VALUES_PER_BYTE * size).count(value)


class Counter:
    """Counts values with each reference written out, in one visit of each container."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known: dict[int, int] = {}
        """id of a container -> values in it"""

    def count(self, value: Any, depth: int = 0) -> int:
        """Values in ``value``, itself included; ValueError beyond a bound."""
        if isinstance(value, Mapping):
            items: Any = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            items = value
        else:
            return 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        if id(value) not in self.known:
            self.known[id(value)] = 1 + sum(self.count(item, depth + 1) for item in items)
        if self.known[id(value)] > self.most:
            raise ValueError(f"its references are nested: more than {self.most} values")
        return self.known[id(value)]
