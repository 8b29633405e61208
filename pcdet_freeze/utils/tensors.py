"""Tensors in what a module takes or returns (dicts, lists, tuples, dataclasses, sparse tensors)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage

ERROR_PIECE = 2**20
"""elements that are compared at a time: float64 copies of no more are needed"""
INFINITE = 0.0, 0.0, 1.0
"""sums of an infinite error, see :func:`error_sums`"""
Copies = dict[int, tuple[Any, Any]]
"""id of an object -> the object and its copy"""


def clone_detached(value: Any, device: torch.device | str | None = None) -> Any:
    """Copy the containers in ``value``, and clone and detach its tensors; all other items are kept.

    Args:
        device: device of the clones; None: that of each tensor.
    """
    return _clone(value, device, {})


def _clone(value: Any, device: torch.device | str | None, copies: Copies) -> Any:
    if isinstance(value, Tensor):
        moved = value.detach().to(device) if device is not None else value.detach()
        return moved.clone() if moved.data_ptr() == value.data_ptr() else moved
    if isinstance(value, list):
        return [_clone(item, device, copies) for item in value]
    if isinstance(value, tuple):
        items = [_clone(item, device, copies) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if (
        device is None and not isinstance(value, dict) and hasattr(value, "replace_feature")
    ):  # spconv's SparseConvTensor
        return value.replace_feature(value.features.detach().clone())
    return with_items(value, lambda item: _clone(item, device, copies), copies)


def dataclass_items(value: Any) -> dict[str, Any]:
    """Fields of an instance of a dataclass, as encoders return them; of anything else none."""
    if isinstance(value, type) or not is_dataclass(value):
        return {}
    return {field.name: getattr(value, field.name, None) for field in fields(value)}


def with_items(value: Any, make: Callable[[Any], Any], copies: Copies) -> Any:
    """A shallow copy of a dict or dataclass with ``make(item)`` for each item; anything else as it is.

    Items are set one by one: the outputs of transformers' models are dicts that refuse ``update``.

    Args:
        copies: those made before, and gets this one: an object may hold itself, as a node that its parent
            and its children know.
    """
    items = value if isinstance(value, dict) else dataclass_items(value)
    if not isinstance(value, dict) and not items:
        return value
    if id(value) in copies:
        return copies[id(value)][1]
    made = copy(value)
    copies[id(value)] = value, made
    for key, item in list(items.items()):
        if isinstance(value, dict):
            made[key] = make(item)
        else:
            object.__setattr__(made, key, make(item))  # a frozen dataclass too
    return made


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in ``value``, in order; of a sparse tensor (spconv) its ``features`` alone."""
    return (tensor for _, tensor in tensors_with_path(value, indices=False))


def tensors_with_path(
    value: Any, path: str = "", indices: bool = True, around: tuple[int, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for every tensor in ``value``, in order.

    Args:
        path: of ``value`` itself.
        indices: whether the ``indices`` of a sparse tensor (spconv) follow its ``features``.
        around: ids of what holds ``value``: an object that holds itself is not entered again.
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    if id(value) in around:
        return
    around = (*around, id(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_with_path(item, f"{path}.{key}" if path else str(key), indices, around)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_with_path(item, f"{path}[{index}]", indices, around)
    elif held := dataclass_items(value):
        yield from tensors_with_path(held, path, indices, around)
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


def pieces(tensor: Tensor, most: int) -> Iterator[Tensor]:
    """Parts of at most ``most`` elements, in order, without a copy; they depend on the shape alone."""
    if tensor.numel() <= most:
        yield tensor
        return
    row = tensor[0].numel()
    for part in tensor.split(max(1, most // row)):
        yield from pieces(part[0], most) if row > most else (part,)


def relative_error(a: Tensor, b: Tensor) -> float:
    """Relative L2 error |b - a| / |a|, in float64; 0 for equal tensors. The host waits once.

    Elements that are equal, or NaN in both, count as equal. Infinite where the shapes differ, where only one
    of two elements is finite, or where ``a`` is zero everywhere and ``b`` is not.
    """
    on_host = a.device.type == b.device.type == "cpu"
    if on_host and same_bits(a, b):  # faster; on a device it would be one more wait
        return 0.0
    return relative_errors([error_sums(a, b)])[0]


@torch.no_grad()
def error_sums(a: Tensor, b: Tensor, exact: bool = False) -> Tensor:
    """The sums of a relative error, for :func:`relative_errors`, on the device of ``a``, without a wait.

    Args:
        exact: any difference is an infinite error.

    Returns:
        float64[3]: |b - a|^2, |a|^2 over finite elements, number of elements whose error is infinite.
    """
    if a.shape != b.shape:
        return torch.tensor(INFINITE, dtype=torch.float64)
    a, b = (tensor.cpu() if tensor.device.type == "mps" else tensor for tensor in (a, b))  # has no float64
    if b.device != a.device:
        b = b.to(a.device)
    kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    sums = torch.zeros(3, dtype=torch.float64, device=a.device)
    for one, other in zip(pieces(a, ERROR_PIECE), pieces(b, ERROR_PIECE), strict=True):
        left, right = one.to(kind), other.to(kind)
        equal = torch.isnan(left) & torch.isnan(right) | (left == right)
        error = torch.where(equal, 0.0, right - left).abs().square()
        norm = torch.where(left.isfinite(), left.abs().square(), 0.0)
        wrong = one != other if exact else ~error.isfinite()
        sums += torch.stack([error.sum(), norm.sum(), wrong.sum()])
    return sums


def relative_errors(sums: Sequence[Tensor]) -> list[float]:
    """The relative error of each pair of tensors from its :func:`error_sums`. One copy for each device."""
    groups: dict[torch.device, list[int]] = defaultdict(list)
    for index, own in enumerate(sums):
        groups[own.device].append(index)
    found = [0.0] * len(sums)
    for indices in groups.values():
        for index, values in zip(indices, torch.stack([sums[i] for i in indices]).tolist(), strict=True):
            found[index] = _relative_error(*values)
    return found


def _relative_error(error: float, norm: float, not_finite: float) -> float:
    if not_finite:
        return math.inf
    return math.sqrt(error) / math.sqrt(norm) if norm else (math.inf if error else 0.0)
