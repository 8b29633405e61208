"""Devices that run beside the host: which they are, and how to send tensors to them without waiting.

The host queues work on such a device and goes on. It waits where it reads a value, and where it copies from
or to memory that is not pinned. So lists whose length depends on data are computed on the host, from the
labels as they were before they were copied (:func:`host_copy`), and sent with :func:`send`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.utils.host_copies import pack, unpack

ON_HOST = ("cpu", "meta", "mps")
"""device types whose tensors take the paths of the CPU; mps has no float64, which those of a GPU need"""


def is_accelerator(value: Tensor | torch.device) -> bool:
    """Whether a tensor is on, or a device is, one that runs beside the host: the paths of a GPU are for it.

    This is the one predicate for it in the package. It is true for any device outside of torch as well.
    """
    device = value.device if isinstance(value, Tensor) else value
    return device.type not in ON_HOST


_any_device = False


def has_cpu_forms(tensor: Tensor) -> bool:
    """Whether operators that exist for a CPU alone (compiled, or block by block) compute on ``tensor``."""
    return tensor.device.type == "cpu" and not _any_device


@contextmanager
def forms_of_any_device() -> Iterator[None]:
    """Compute on a CPU by the operators that other devices run, so that these can be counted."""
    global _any_device
    before, _any_device = _any_device, True
    try:
        yield
    finally:
        _any_device = before


def autocast_is_on(kind: str) -> bool:
    """Whether autocast is enabled for this device type."""
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # torch before 2.4
        return torch.is_autocast_enabled() if kind == "cuda" else torch.is_autocast_cpu_enabled()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on ``device``; the host does not wait for the copy, nor for the device.

    On CUDA the tensor is copied to pinned memory first, unless it is there already.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """CPU tensors on ``device``, in one copy (:func:`send`)."""
    if device.type == "cpu":
        return list(tensors)
    # in this order each begins at a multiple of its element size, as view(dtype) demands
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())
    ordered = [tensors[index] for index in order]
    sent = dict(zip(order, unpack(send(pack(ordered), device), ordered), strict=True))
    return [sent[index] for index in range(len(tensors))]


def constant(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N,) the numbers of a config on ``device``, copied once a process. Do not change it in
    place."""
    return _constant(tuple(values), device, dtype)


@lru_cache(maxsize=1024)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # autograd cannot save a tensor that was made in inference mode
        return torch.tensor(values, dtype=dtype).to(device)  # waits, so that every stream may read it


def keep_host_copy(tensor: Tensor, host: Tensor) -> Tensor:
    """Note that ``tensor``, on a device, has the values of ``host``; returns ``tensor``."""
    if is_accelerator(tensor):
        tensor.host_copy = host, _version(tensor)  # type: ignore[attr-defined]
    return tensor


def host_copy(tensor: Tensor) -> Tensor:
    """The values of ``tensor`` on the CPU: those that it was copied from, if it was not changed since.

    A tensor that was computed on a device, or changed there, is copied, for which the host waits. Do not
    change the result in place.
    """
    if not is_accelerator(tensor):
        return tensor
    host, version = getattr(tensor, "host_copy", (None, None))
    return tensor.cpu() if host is None or version != _version(tensor) else host


@contextmanager
def on_side_stream(batch_dict: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Fill ``batch_dict`` on a stream of its own, on CUDA; elsewhere nothing is changed.

    Kernels of the step before run at the same time, and the host waits for those of this stream alone. What
    follows on the device waits for it, without the host.
    """
    if device.type != "cuda":
        yield
        return
    main, side = torch.cuda.current_stream(device), _side_stream(device)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)
    for value in batch_dict.values():
        if isinstance(value, Tensor) and value.is_cuda:
            value.record_stream(main)  # its memory is free only when the main stream has used it


@lru_cache(maxsize=16)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # its few small kernels go first: they do not wait until the step before leaves multiprocessors free
    return torch.cuda.Stream(device, priority=-1)


def wait_for(values: Sequence[Tensor]) -> list[int]:
    """Read numbers () from their device in one copy, and wait for it.

    In a training iteration the host waits in this function only, so that ``torch.cuda.set_sync_debug_mode``
    can forbid it everywhere else: the mode is lifted here.
    """
    mode = torch.cuda.get_sync_debug_mode() if values[0].device.type == "cuda" else 0
    if mode:
        torch.cuda.set_sync_debug_mode("default")
    try:
        if len(values) == 1:
            return [int(values[0])]
        found: list[int] = torch.stack([value.long() for value in values]).tolist()
    finally:
        if mode:
            torch.cuda.set_sync_debug_mode(mode)
    return found


def keep_total(counts: Tensor, total: int) -> Tensor:
    """Note that the sum of ``counts``, on a device, is ``total``; returns ``counts``."""
    counts.known_total = total, _version(counts)  # type: ignore[attr-defined]
    return counts


def total_of(counts: Tensor, most: int) -> int:
    """Sum of ``counts``, each at most ``most``; the host waits if it knows neither the sum nor ``counts``."""
    total, version = getattr(counts, "known_total", (None, None))
    if total is None or version != _version(counts):
        return int(host_copy(counts).clamp(min=0, max=most).sum())
    return int(total)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
