"""Copies of tensors that are restored if a flag on the device says so, without a wait of the host."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

CHUNK = 2**23
"""elements restored at once, which bounds the memory that a restore needs besides the copies"""


class KeptTensors:
    """Copies of ``tensors``, flattened into few large ones."""

    @torch.no_grad()
    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._chunks = [(chunk, _flat(chunk)) for chunk in _chunks(tensors)]

    @torch.no_grad()
    def restore_unless(self, condition: Tensor) -> None:
        """Write the copies back where ``condition`` (() bool) is False; else write what is there already."""
        for tensors, before in self._chunks:
            kept = torch.where(condition, _flat(tensors), before)
            torch._foreach_copy_(tensors, _shaped(kept, tensors))

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back."""
        for tensors, before in self._chunks:
            torch._foreach_copy_(tensors, _shaped(before, tensors))


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _shaped(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _chunks(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Lists of tensors of one dtype and device with about ``CHUNK`` elements."""
    chunks: dict[tuple[torch.dtype, torch.device], list[list[Tensor]]] = {}
    for tensor in tensors:
        lists = chunks.setdefault((tensor.dtype, tensor.device), [[]])
        if lists[-1] and sum(each.numel() for each in lists[-1]) + tensor.numel() > CHUNK:
            lists.append([])
        lists[-1].append(tensor.detach())
    return [chunk for lists in chunks.values() for chunk in lists if chunk]


def step_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Tensors that a step of ``optimizer`` changes: trainable parameters and their state.

    Without the step counters of torch's optimizers that are on the CPU: see :func:`take_back_counters`.
    """
    found: list[Tensor] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                state = optimizer.state.get(parameter, {})
                kept = [v for key, v in state.items() if torch.is_tensor(v) and not _is_counter(key, v)]
                found += [parameter, *kept]
    return found


def take_back_counters(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Subtract one from the step counters of ``parameters`` that are on the CPU."""
    for parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(value) and _is_counter(key, value):
                value.sub_(1)


@torch.no_grad()
def zero_unless(condition: Tensor, tensors: Iterable[Tensor]) -> None:
    """Set ``tensors`` to zero if ``condition`` (() bool, on their device) is False.

    This takes back the first step of an optimizer whose state starts with zeros. Those of
    ``adam_onecycle`` and ``adam`` do; for ``sgd``, a momentum of zeros and none give the same next step:
    its dampening is 0. The trainer builds no other. It would be wrong for torch's NAdam, whose ``mu_product``
    starts with one.
    """
    for tensor in tensors:
        tensor.copy_(torch.where(condition, tensor, torch.zeros_like(tensor)))


def _is_counter(key: str, value: Tensor) -> bool:
    return key == "step" and value.device.type == "cpu"
