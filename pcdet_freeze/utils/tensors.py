"""Tensors in what a module takes or returns (dicts, lists, tuples, sparse tensors), copied and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, UntypedStorage


def clone_detached(value: Any, device: torch.device | str | None = None) -> Any:
    """Copy the containers in ``value``, and clone and detach its tensors; all other items are kept.

    Args:
        device: device of the clones; None: that of each tensor.
    """
    if isinstance(value, Tensor):
        moved = value.detach().to(device) if device is not None else value.detach()
        return moved.clone() if moved.data_ptr() == value.data_ptr() else moved
    if isinstance(value, dict):
        made = copy(value)
        made.update({key: clone_detached(item, device) for key, item in value.items()})
        return made
    if isinstance(value, list):
        return [clone_detached(item, device) for item in value]
    if isinstance(value, tuple):
        items = [clone_detached(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if device is None and hasattr(value, "replace_feature"):  # spconv's SparseConvTensor
        return value.replace_feature(value.features.detach().clone())
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in ``value``, in order; of a sparse tensor (spconv) its ``features`` alone."""
    return (tensor for _, tensor in tensors_with_path(value, indices=False))


def tensors_with_path(value: Any, path: str = "", indices: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for every tensor in ``value``, in order.

    Args:
        path: of ``value`` itself.
        indices: whether the ``indices`` of a sparse tensor (spconv) follow its ``features``.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_with_path(item, f"{path}.{key}" if path else str(key), indices)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_with_path(item, f"{path}[{index}]", indices)
    elif isinstance(getattr(value, "features", None), Tensor):
        yield f"{path}.features", value.features
        if indices and isinstance(getattr(value, "indices", None), Tensor):
            yield f"{path}.indices", value.indices


def storage_of(tensor: Tensor) -> UntypedStorage | None:
    """The memory that ``tensor`` and its views share; None for layouts without one."""
    return tensor.untyped_storage() if tensor.layout == torch.strided else None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether dtype, shape and bits are equal: a NaN equals the same NaN, and 0.0 differs from -0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(flat_bytes(a), flat_bytes(b.to(a.device)))


def flat_bytes(tensor: Tensor) -> Tensor:
    """Bytes of a strided tensor in C order, on its device; no copy if it is contiguous."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # one element of a larger tensor is contiguous with any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def relative_error(a: Tensor, b: Tensor) -> float:
    """Relative L2 error |b - a| / |a|, in float64; 0 for equal tensors.

    Elements that are equal, or NaN in both, count as equal. Infinite where the shapes differ, where only one
    of two elements is finite, or where ``a`` is zero everywhere and ``b`` is not.
    """
    if a.shape != b.shape:
        return float("inf")
    if same_bits(a, b):
        return 0.0
    kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    left, right = a.detach().to("cpu", kind), b.detach().to("cpu", kind)
    equal = torch.isnan(left) & torch.isnan(right) | (left == right)
    error = torch.where(equal, torch.zeros_like(left), right - left)
    if not error.isfinite().all():
        return float("inf")
    size, norm = (float(part.abs().square().sum()) ** 0.5 for part in (error, left[left.isfinite()]))
    return size / norm if norm else (float("inf") if size else 0.0)
