"""Record which tensors of a model are loaded with ``load_state_dict`` (P4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LoadRecorder:
    """Records ``nn.Module.load_state_dict`` calls, of models and of their parts, while they are built too."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[list[Tensor]], None]] = []

    def around(self, original: Any, module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Replaces ``load_state_dict``: loads, then passes the loaded tensors to the listeners.

        Tensors of the model's own state do not count as loaded: OpenPCDet updates a part of a state_dict and
        loads all of it.
        """
        before = {name: tensor.data_ptr() for name, tensor in _state(module) if tensor.numel()}
        result = original(module, state_dict, *args, **kwargs)
        source = state_dict if isinstance(state_dict, Mapping) else {}
        loaded = [
            tensor
            for name, tensor in _state(module)
            if _is_from_file(source.get(name), tensor, before.get(name))
        ]
        for listener in list(self.listeners):
            listener(loaded)
        return result

    @contextmanager
    def collecting(self) -> Iterator[list[Tensor]]:
        """Context that collects the tensors loaded inside it."""
        found: list[Tensor] = []
        self.listeners.append(found.extend)
        try:
            yield found
        finally:
            self.listeners.remove(found.extend)


def names_of(model: nn.Module, tensors: list[Tensor]) -> set[str]:
    """Names of those ``tensors`` that belong to ``model``."""
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
