"""Which tensors of a model came from a file, however they were loaded (P4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LoadWatch:
    """Looks on at ``nn.Module.load_state_dict``, of whole models and of parts, while one is built too."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[list[Tensor]], None]] = []

    def around(self, original: Any, module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of ``load_state_dict``: loads as it does, then tells which tensors it filled.

        What is handed back to the model from its own state (a state_dict that was updated in part) came from
        no file, and does not count.
        """
        before = {name: tensor.data_ptr() for name, tensor in _state(module) if tensor.numel()}
        result = original(module, state_dict, *args, **kwargs)
        given = state_dict if isinstance(state_dict, Mapping) else {}
        filled = [
            tensor
            for name, tensor in _state(module)
            if _is_from_file(given.get(name), tensor, before.get(name))
        ]
        for listener in list(self.listeners):
            listener(filled)
        return result

    @contextmanager
    def collecting(self) -> Iterator[list[Tensor]]:
        """Collect the tensors that are filled while it is open."""
        found: list[Tensor] = []
        self.listeners.append(found.extend)
        try:
            yield found
        finally:
            self.listeners.remove(found.extend)


def names_of(model: nn.Module, tensors: list[Tensor]) -> set[str]:
    """Names in ``model`` of those of ``tensors`` that are its own."""
    ids = {id(tensor) for tensor in tensors}
    return {name for name, tensor in _state(model) if id(tensor) in ids}


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            yield name, value


def _is_from_file(value: Any, tensor: Tensor, own_memory: int | None) -> bool:
    if not torch.is_tensor(value) or value.shape != tensor.shape:
        return False
    return not value.numel() or value.data_ptr() != own_memory
