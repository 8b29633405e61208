"""Run code of a module and leave tensors, buffers and attributes as they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pcdet_freeze.utils.tensors import storage_of, tensors_with_path

CONTAINERS = (dict, list, set, deque)
_OF_TORCH = frozenset(nn.Module().__dict__)


class GuardedTensors:
    """Tensors whose values are restored if an operator writes to them; see :class:`WriteGuard`."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        storages = (storage_of(tensor) for tensor in tensors)
        self._guarded = {id(storage): storage for storage in storages if storage is not None}
        self._saved: dict[int, Tensor] = {}

    def has_written(self, tensor: Tensor) -> bool:
        """Whether an operator wrote to the memory of ``tensor``, which is one of those given."""
        return id(storage_of(tensor)) in self._saved

    @property
    def has_written_any(self) -> bool:
        """Whether an operator wrote to any of the tensors."""
        return bool(self._saved)

    def save(self, storage: UntypedStorage | None) -> None:
        """Copy the bytes of ``storage``, before it is written to, if it is guarded and not copied yet."""
        if id(storage) in self._guarded and id(storage) not in self._saved and storage is not None:
            self._saved[id(storage)] = _bytes_of(storage).clone()

    def restore(self) -> None:
        """Write the copies back."""
        for key, values in self._saved.items():
            _bytes_of(self._guarded[key]).copy_(values)
        self._guarded = {key: storage for key, storage in self._guarded.items() if key in self._saved}


class WriteGuard(TorchDispatchMode):
    """Restores, on exit, the values of ``tensors`` that an operator inside wrote to.

    A tensor is copied right before the first operator that writes to it, so that nothing is copied for
    modules that write to no input. Kernels outside of torch's operators are not seen.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.tensors = GuardedTensors(tensors)
        self._groups = [self.tensors]

    @contextmanager
    def also(self, tensors: Iterable[Tensor]) -> Iterator[GuardedTensors]:
        """Guard further tensors until the context ends; a second mode would slow each operator down."""
        group = GuardedTensors(tensors)
        self._groups.append(group)
        try:
            yield group
        finally:
            self._groups.remove(group)
            group.restore()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for index, name in _written(func):
            self._save(args[index] if index < len(args) else kwargs.get(name))
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.tensors.restore()

    def _save(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            storage = storage_of(tensor) if isinstance(tensor, Tensor) else None
            for group in self._groups:
                group.save(storage)


@cache
def _written(operator: Any) -> tuple[tuple[int, str], ...]:
    """(index, name) of the arguments that ``operator`` writes to."""
    schema = getattr(operator, "_schema", None)  # operators of higher order have none
    if schema is None or not schema.is_mutable:
        return ()
    arguments = enumerate(schema.arguments)
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def _bytes_of(storage: UntypedStorage) -> Tensor:
    """A tensor of all bytes of ``storage``, with a version counter of its own."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class Attributes:
    """Attributes that a module's own code sets, such as ``self.forward_ret_dict``, with those of its parts.

    Containers of the types in ``CONTAINERS`` count with what is in them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [(part, _own_attributes(part)) for part in module.modules()]
        self._contents: dict[int, tuple[Any, Any]] = {}
        for value in self.values():
            self._keep_content(value)

    def values(self) -> Iterator[Any]:
        """Yield the value of each attribute."""
        for _, own in self._kept:
            yield from own.values()

    def _keep_content(self, value: Any) -> None:
        if type(value) in CONTAINERS and id(value) not in self._contents:
            self._contents[id(value)] = value, value.copy()
            for item in _items(value):
                self._keep_content(item)

    @property
    def have_changed(self) -> bool:
        """Whether an attribute was set or deleted, or a container changed, since this object was made."""
        return any(_differ(own, _own_attributes(part)) for part, own in self._kept) or any(
            _differ(value, content) for value, content in self._contents.values()
        )

    def restore(self) -> None:
        """Set all attributes and the contents of containers as they were."""
        for part, own in self._kept:
            for name in _own_attributes(part):
                del part.__dict__[name]
            part.__dict__.update(own)
        for value, content in self._contents.values():
            if _differ(value, content):
                value.clear()
                value.extend(content) if isinstance(value, list | deque) else value.update(content)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes that the module's own code sets; without torch's dicts and the training flag."""
    return {name: value for name, value in module.__dict__.items() if name not in _OF_TORCH}


def _items(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _differ(a: Any, b: Any) -> bool:
    """Whether two containers have other items: the same objects in the same order are none."""
    if isinstance(a, dict) and list(a) != list(b):
        return True
    return list(map(id, _items(a))) != list(map(id, _items(b)))


def own_tensors(module: nn.Module, attributes: Attributes) -> Iterator[Tensor]:
    """Yield parameters, and tensors in plain attributes, of ``module`` and of all modules in it."""
    yield from module.parameters()
    for value in attributes.values():
        yield from (tensor for _, tensor in tensors_with_path(value))


@contextmanager
def same_buffers(module: nn.Module) -> Iterator[None]:
    """Restore buffers that a forward changes or replaces (those of FREEZE.IGNORE may change).

    They are written back whether they changed or not: to ask a device would be a wait for each buffer.
    """
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    buffers = {id(buffer): buffer for _, own in kept for buffer in own.values() if buffer is not None}
    values = [(buffer, buffer.clone()) for buffer in buffers.values() if not _overlaps(buffer)]
    try:
        yield
    finally:
        for part, own in kept:
            part._buffers.update(own)
        for buffer, value in values:
            # through .data: a graph that has saved the buffer must not take the same values for a change
            buffer.data.copy_(value)


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements of ``tensor`` share memory, as after ``expand``: torch refuses to write to it."""
    if tensor.layout != torch.strided:
        return False
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)
