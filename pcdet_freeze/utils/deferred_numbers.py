"""Numbers that may still be on a device: they are read together, with one wait of the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Number = float | Tensor


def read_numbers(values: Iterable[Number]) -> list[float]:
    """``values`` as numbers; all tensors among them are copied to the host at once."""
    found = list(values)
    tensors = [value.detach().reshape(()) for value in found if isinstance(value, Tensor)]
    read = iter(_read(tensors))
    return [next(read) if isinstance(value, Tensor) else value for value in found]


def _read(tensors: Sequence[Tensor]) -> list[float]:
    if not tensors:
        return []
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        return [float(tensor) for tensor in tensors]
    numbers: list[float] = torch.stack(list(tensors)).tolist()
    return numbers


class DeferredNumbers:
    """A growing list of numbers that is read every ``every`` entries, so that tensors do not pile up."""

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._read: list[float] = []
        self._waiting: list[Number] = []

    def append(self, value: Number) -> None:
        """Add a number, or a tensor that is not read yet."""
        self._waiting.append(value)
        if len(self._waiting) >= self.every:
            self.values()

    def values(self) -> list[float]:
        """All numbers; waits for the device."""
        self._read += read_numbers(self._waiting)
        self._waiting = []
        return self._read
