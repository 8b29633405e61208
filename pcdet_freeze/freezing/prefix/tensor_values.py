"""Tensors inside whatever a module takes or returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, UntypedStorage, strided


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in ``value``: containers, and sparse tensors' ``features`` (spconv), are looked into."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
    elif isinstance(getattr(value, "features", None), Tensor):
        yield value.features


def storage_of(tensor: Tensor) -> UntypedStorage | None:
    """The memory that ``tensor`` and its views share; None for layouts without any."""
    return tensor.untyped_storage() if tensor.layout == strided else None
