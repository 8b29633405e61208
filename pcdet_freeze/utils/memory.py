"""Peak memory of tensors in a step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], Any]


def peak_bytes(step: Step, existing: Iterable[torch.Tensor], device: torch.device) -> int:
    """Peak bytes of live tensors during ``step``, including those of ``existing``.

    On the CPU each storage counts from the operator that returns it until it is freed; workspaces inside an
    operator, and numpy's memory, are not seen. On CUDA this is the allocator's peak, without what was
    allocated before besides ``existing``.
    """
    own = {id(storage): storage for storage in storages(existing)}
    begin = sum(storage.nbytes() for storage in own.values())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return begin + torch.cuda.max_memory_allocated(device) - before
    with _LivePeak(own.values()) as live:
        step()
    return live.peak


class _LivePeak(TorchDispatchMode):
    """Tracks the storages that operators return until they are freed."""

    def __init__(self, existing: Iterable[torch.UntypedStorage]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.live = self.peak = 0
        for storage in existing:
            self._track(storage)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in storages(tree_leaves(result)):
            self._track(storage)
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        grown = storage.nbytes() - self.sizes.get(key, 0)
        if key not in self.references:
            self.references[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.sizes[key] = storage.nbytes()
        self.live += grown
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)
        del self.references[key]


def storages(values: Iterable[Any]) -> list[torch.UntypedStorage]:
    """The storages of the dense tensors among ``values``, in order; a shared one repeatedly."""
    return [
        value.untyped_storage()
        for value in values
        if isinstance(value, torch.Tensor) and value.layout == torch.strided
    ]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All tensors of the optimizer state."""
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]


_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
"""in messages of CUDA and other devices, of torch's CPU allocator, and of cuBLAS, cuDNN and cuSPARSE"""


def is_memory_error(error: BaseException) -> bool:
    """Whether ``error`` says that the host or a device has no memory left."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)


def free_cached_memory() -> None:
    """Give memory that CUDA's allocator keeps unused back to the device; does nothing without CUDA."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
