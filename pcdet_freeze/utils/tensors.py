"""Tensors inside whatever a module takes or returns: dicts, lists, tuples, sparse tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor


def fresh(value: Any, device: torch.device | str | None = None) -> Any:
    """``value`` with new containers and clones of its tensors, without a graph; all else is kept as it is.

    Args:
        device: where the clones shall lie; None: where the tensors lie.
    """
    if isinstance(value, Tensor):
        moved = value.detach().to(device) if device is not None else value.detach()
        return moved.clone() if moved.data_ptr() == value.data_ptr() else moved
    if isinstance(value, dict):
        made = copy(value)
        made.update({key: fresh(item, device) for key, item in value.items()})
        return made
    if isinstance(value, list):
        return [fresh(item, device) for item in value]
    if isinstance(value, tuple):
        items = [fresh(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if device is None and hasattr(value, "replace_feature"):  # spconv's SparseConvTensor
        return value.replace_feature(value.features.detach().clone())
    return value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of every tensor in ``value``, in order."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif isinstance(getattr(value, "features", None), Tensor):
        yield f"{path}.features", value.features
        if isinstance(getattr(value, "indices", None), Tensor):
            yield f"{path}.indices", value.indices


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: NaN equals the same NaN, and 0 is not -0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(_bytes(a), _bytes(b.to(a.device)))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative difference |b - a| / |a| (L2, in float64); 0 for equal bits, infinite where shapes differ.

    Where ``a`` is zero everywhere and ``b`` is not, infinite too.
    """
    if same_bits(a, b):
        return 0.0
    if a.shape != b.shape:
        return float("inf")
    kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    left, right = a.detach().to("cpu", kind), b.detach().to("cpu", kind)
    both = torch.isnan(left) & torch.isnan(right) | (left == right)
    off = torch.where(both, torch.zeros_like(left), right - left)
    if not off.isfinite().all():
        return float("inf")
    size, length = float(off.abs().square().sum()) ** 0.5, float(left[left.isfinite()].abs().square().sum())
    return size / length**0.5 if length else (float("inf") if size else 0.0)
