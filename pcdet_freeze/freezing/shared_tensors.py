"""Modules, parameters, buffers and memory that frozen and trainable modules share (N7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.entries.module_set import ModuleSet
from pcdet_freeze.freezing.entries.paths import is_within, join, walk

_CURE = "name both in the list, or set FREEZE.SHARED: freeze to freeze it for both"


@dataclass(frozen=True)
class Shared:
    """A module or tensor that a frozen and a trainable path reach."""

    frozen: str
    live: str
    what: str
    owner: str = ""
    """Path of the trainable module that owns it (tensors only)."""
    name: str = ""
    """Its name there."""
    is_buffer: bool = False


@dataclass(frozen=True)
class Sharing:
    """All that is shared."""

    items: tuple[Shared, ...] = ()

    def faults(self) -> list[str]:
        """One error line for each."""
        return [
            f"{item.frozen} is frozen, but {item.live}, which trains, is the same {item.what}: {_CURE}"
            for item in self.items
        ]

    def notes(self) -> list[str]:
        """One note for each, where sharing is accepted."""
        return [f"{item.live} is the same {item.what} as {item.frozen}: frozen too" for item in self.items]

    @property
    def tied(self) -> tuple[tuple[str, str], ...]:
        """(trainable module, parameter) pairs that share memory with a frozen tensor."""
        return tuple((item.owner, item.name) for item in self.items if item.name and not item.is_buffer)

    @property
    def users(self) -> tuple[str, ...]:
        """Trainable modules that own a frozen buffer too."""
        return tuple(dict.fromkeys(item.owner for item in self.items if item.name and item.is_buffer))


@dataclass(frozen=True)
class _Tensor:
    path: str
    owner: str
    name: str
    tensor: torch.Tensor
    is_buffer: bool


def find_sharing(root: nn.Module, module_set: ModuleSet, parameters: bool) -> Sharing:
    """What the modules of ``module_set`` in ``root`` share with the rest.

    Args:
        parameters: False where parameters keep training: then only locked layers count, and their buffers.
    """
    frozen: dict[int, str] = {}
    live: dict[int, str] = {}
    modules: dict[int, tuple[nn.Module, nn.Module | None]] = {}
    for path, module, parent in walk(root):
        (frozen if module_set.contains(path) else live).setdefault(id(module), path)
        modules.setdefault(id(module), (module, parent))
    both = [key for key in frozen if key in live and _matters(*modules[key], parameters)]
    places = {key: (frozen[key], live[key]) for key in both}
    items = [
        Shared(*places[key], f"module ({type(modules[key][0]).__name__})")
        for key in both
        if not any(other != key and _inside(places[key], places[other]) for other in both)
    ]
    ours = [t for k, p in frozen.items() for t in _tensors(p, *modules[k], parameters)]
    theirs = [t for k, p in live.items() if k not in frozen for t in _tensors(p, *modules[k], True)]
    return Sharing((*items, *_same_memory(ours, theirs)))


def _inside(places: tuple[str, str], others: tuple[str, str]) -> bool:
    return is_within(places[0], others[0]) and is_within(places[1], others[1])


def _matters(module: nn.Module, parent: nn.Module | None, parameters: bool) -> bool:
    """Whether freezing a module changes what a trainable path that reaches it too computes."""
    if layer_types.needs_eval_lock(module, parent) or layer_types.is_recurrent(module):
        return True
    return parameters and (
        layer_types.has_state(module) or any(layer_types.is_dropout(m) for m in module.modules())
    )


def _tensors(path: str, module: nn.Module, parent: nn.Module | None, parameters: bool) -> Iterator[_Tensor]:
    if parameters:
        for name, tensor in module._parameters.items():
            if tensor is not None:
                yield _Tensor(join(path, name), path, name, tensor, False)
    if parameters or layer_types.needs_eval_lock(module, parent):
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield _Tensor(join(path, name), path, name, buffer, True)


def _same_memory(frozen: list[_Tensor], live: list[_Tensor]) -> Iterator[Shared]:
    by_storage: dict[tuple[str, int], list[_Tensor]] = {}
    by_id = {id(item.tensor): item for item in frozen}
    for item in frozen:
        by_storage.setdefault(_storage(item.tensor), []).append(item)
    for item in live:
        twin = by_id.get(id(item.tensor))
        if twin is None:
            near = by_storage.get(_storage(item.tensor), [])
            twin = next((other for other in near if _overlap(other.tensor, item.tensor)), None)
        if twin is not None:
            kind = "buffer" if item.is_buffer else "parameter"
            what = kind if twin.tensor is item.tensor else f"memory ({kind})"
            yield Shared(twin.path, item.path, what, item.owner, item.name, item.is_buffer)


def _storage(tensor: torch.Tensor) -> tuple[str, int]:
    """Where the memory of ``tensor`` starts; (device, 0) for tensors without memory of their own."""
    if is_lazy(tensor):
        return "", 0
    try:
        return str(tensor.device), tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors have no plain storage
        return str(tensor.device), 0


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if _storage(a)[1] == 0 or a.numel() == 0 or b.numel() == 0:
        return False
    (a_first, a_end), (b_first, b_end) = _span(a), _span(b)
    return a_first < b_end and b_first < a_end


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last-but-one byte of ``tensor`` in its storage."""
    first = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = first + sum((int(size) - 1) * int(stride) for size, stride in steps)
    return first * tensor.element_size(), (last + 1) * tensor.element_size()
