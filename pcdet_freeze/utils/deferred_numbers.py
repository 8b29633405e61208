"""Numbers that may still be on a device: they are read together, with one wait of the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from weakref import WeakSet

import torch
from torch import Tensor

Number = float | Tensor


def read_numbers(values: Iterable[Number]) -> list[float]:
    """``values`` as numbers; all tensors among them are copied to the host at once.

    Each :class:`DeferredNumbers` with tensors on the same device is read in the same copy.
    """
    found = list(values)
    devices = {value.device for value in found if isinstance(value, Tensor)}
    others = [other for other in _WAITING if other.devices and other.devices <= devices]
    return _read_with(found, others)


def _read_with(found: Sequence[Number], others: Sequence[DeferredNumbers]) -> list[float]:
    """``found`` as numbers; all ``others`` are read, too."""
    every = [*found, *(value for other in others for value in other.waiting)]
    tensors = [value.detach().reshape(()) for value in every if isinstance(value, Tensor)]
    read = iter(_read(tensors))
    numbers = [next(read) if isinstance(value, Tensor) else value for value in every]
    begin = len(found)
    for other in others:
        end = begin + len(other.waiting)
        other.take(numbers[begin:end])
        begin = end
    return numbers[: len(found)]


def _read(tensors: Sequence[Tensor]) -> list[float]:
    """One copy for each device and dtype among ``tensors``; usually there is one."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(place)
    numbers = [0.0] * len(tensors)
    for places in kinds.values():
        for place, value in zip(places, torch.stack([tensors[p] for p in places]).tolist(), strict=True):
            numbers[place] = float(value)
    return numbers


class DeferredNumbers:
    """Growing list of numbers that is read with the next :func:`read_numbers` of other ones.

    It waits for the device by itself only where ``most`` tensors have piled up, or where it is asked.
    """

    def __init__(self, most: int = 200) -> None:
        self.most = most
        self.waiting: list[Number] = []
        """what was not read yet, in order; begins with a tensor"""
        self.devices: set[torch.device] = set()
        """of the tensors among them"""
        self._known: list[float] = []
        _WAITING.add(self)

    def append(self, value: Number) -> None:
        """Add a number, or a tensor that is not read yet."""
        if isinstance(value, Tensor):
            self.waiting.append(value.detach())
            self.devices.add(value.device)
        elif self.waiting:
            self.waiting.append(value)
        else:
            self._known.append(value)
        if len(self.waiting) >= self.most:
            self.values()

    def take(self, numbers: Sequence[float]) -> None:
        """Take the numbers of all that waits."""
        self._known += numbers
        self.waiting, self.devices = [], set()

    def values(self) -> list[float]:
        """All numbers; waits for the device."""
        if self.waiting:
            _read_with([], [self])
        return self._known

    def drain(self) -> list[float]:
        """Remove and return the numbers that are known; does not wait."""
        known, self._known = self._known, []
        return known


_WAITING: WeakSet[DeferredNumbers] = WeakSet()
