"""Find the boundary of the cached part of a forward: which of its outputs the rest reads (F7).

The cached part is the frozen prefix, and modules without state that read the prefix's outputs and the batch
alone (a scatter between two frozen modules). A traced forward shows which of its tensors operators outside
read: those are cached. A tensor that cannot be cached by sample is refused, with the reason.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._pytree import tree_leaves

from pcdet_freeze.freezing.layer_types import has_state
from pcdet_freeze.freezing.prefix.tracer import ModuleCallMode, only_views
from pcdet_freeze.utils.tensors import storage_of, tensors_of

CallName = tuple[str, int]
"""(path of a module, index of the call in a step)"""
PLAIN = (int, float, bool, str, type(None))


@dataclass(frozen=True)
class Slot:
    """One tensor that crosses the boundary."""

    path: str
    call: int
    key: str
    """key of the output dict; empty if the output is the tensor itself"""
    shape: tuple[int, ...]
    """shape of one sample"""
    dtype: torch.dtype
    channels_last: bool = False
    """whether a batch of it is in the channels_last memory format"""

    @property
    def name(self) -> str:
        """``backbone_2d.blocks.0`` or ``map_to_bev_module: spatial_features``."""
        number = f" (call {self.call + 1})" if self.call else ""
        return f"{self.path}{number}" + (f": {self.key}" if self.key else "")


@dataclass
class Output:
    """Output of one call of the cached part."""

    form: str
    """``value``: one value, with an empty key; ``dict``: a new dict; ``batch``: keys of the batch_dict"""
    values: dict[str, Any] = field(default_factory=dict)
    """key -> :class:`Slot`, a meta tensor for a tensor without readers, a plain value, or None"""


@dataclass
class Boundary:
    """Calls of the cached part, and the tensors to cache."""

    outputs: dict[CallName, Output] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()
    refused: tuple[str, ...] = ()
    """tensors that cannot be cached, each with the reason"""

    @property
    def paths(self) -> tuple[str, ...]:
        """Modules of the cached part, in the order of their calls."""
        return tuple(dict.fromkeys(path for path, _ in self.outputs))


@dataclass(frozen=True)
class _Owner:
    """The call, and key of its output, to which a storage belongs; ``key`` None: made inside the call."""

    call: CallName
    key: str | None


class BoundaryTrace(ModuleCallMode):
    """Traces which outputs of the cached part are read outside of it.

    >>> with BoundaryTrace(model, live, prefix, given) as trace:
    ...     result = model(batch)
    >>> boundary = trace.boundary(result, batch_size)

    Args:
        live: calls that read a live tensor (see :class:`Trace`).
        prefix: paths of the frozen prefix.
        given: values of the batch.
    """

    def __init__(
        self, model: nn.Module, live: Collection[CallName], prefix: Collection[str], given: Any
    ) -> None:
        super().__init__(model)
        self.live, self.prefix = set(live), set(prefix)
        self.outputs: dict[CallName, dict[str, Any]] = {}
        self.forms: dict[CallName, str] = {}
        self.read: dict[_Owner, None] = {}
        self.written: set[_Owner] = set()
        self._given = {id(storage_of(tensor)) for tensor in tensors_of(given)}
        self._tags: dict[int, tuple[weakref.ref[UntypedStorage], tuple[_Owner, ...]]] = {}
        self._times: Counter[str] = Counter()
        self._stack: list[CallName | None] = []
        self._before: dict[str, Any] = {}
        self._open: CallName | None = None

    def __enter__(self) -> BoundaryTrace:
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        owners = self._owners(given)
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if self._open is None:
            if not only_views(given, made, func._schema.is_mutable):
                self._note(owners)
            return result
        for tensor in made:
            known = self._owners([tensor])
            if not known:
                self._tag(tensor, _Owner(self._open, None))
            elif func._schema.is_mutable:
                self.written.update(owner for owner in known if owner.call != self._open)
        return result

    def boundary(self, result: Any, batch_size: int) -> Boundary:
        """Return the boundary, after a forward that returned ``result``."""
        self._note(self._owners(tensors_of(result)))
        refused, slots = [], []
        for owner in self.read:
            fault, slot = self._slot(owner, batch_size)
            refused += [fault] if fault else []
            slots += [slot] if slot else []
        for (path, _), values in self.outputs.items():
            passed_on = any(id(storage_of(t)) in self._given for t in tensors_of(list(values.values())))
            refused += [f"{path} returns a tensor of the batch itself"] if passed_on else []
        kept = {(slot.path, slot.call, slot.key): slot for slot in slots}
        outputs = {
            call: Output(self.forms[call], {k: _stand_in(kept.get((*call, k)), v) for k, v in values.items()})
            for call, values in self.outputs.items()
        }
        order = {call: place for place, call in enumerate(self.outputs)}
        slots.sort(key=lambda slot: (order[slot.path, slot.call], slot.key))
        return Boundary(outputs, tuple(slots), tuple(dict.fromkeys(refused)))

    def _slot(self, owner: _Owner, batch_size: int) -> tuple[str, Slot | None]:
        path, number = owner.call
        if owner.key is None:
            return f"{path} stores tensors that other modules read", None
        value = self.outputs[owner.call][owner.key]
        what = f"{path}{': ' + owner.key if owner.key else ''}"
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return f"{what} is {type(value).__name__}, not a dense tensor", None
        if value.dim() == 0 or value.shape[0] != batch_size:
            return f"{what} has shape {tuple(value.shape)}, not a row for each of {batch_size} samples", None
        if owner in self.written:
            return f"{what} is modified in place by a later module of the prefix", None
        return "", Slot(
            path, number, owner.key, tuple(value.shape[1:]), value.dtype, _is_channels_last(value)
        )

    def _enter(self, path: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = (path, self._times[path])
            self._times[path] += 1
            self._stack.append(call)
            free = self._open is None and call not in self.live and len(self._stack) > 1
            if free and (path in self.prefix or (_is_batch(args) and self._follows(module, args[0]))):
                self._open, self._before = call, dict(args[0]) if _is_batch(args) else {}
            elif self._open is None and not module._modules and not _is_batch(args):
                self._note(self._owners(tensors_of((args, kwargs))))

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._stack.pop()
        if call is None or call != self._open:
            return
        form, values = "value", {"": output}
        if _is_batch(args) and output is args[0]:
            form, values = "batch", {key: v for key, v in output.items() if self._before.get(key) is not v}
        elif type(output) is dict:
            form, values = "dict", output
        for key, value in values.items():
            for tensor in tensors_of(value):
                self._tag(tensor, _Owner(call, key))
        self.outputs[call], self.forms[call] = dict(values), form
        self._open, self._before = None, {}

    def _follows(self, module: nn.Module, batch: Mapping[str, Any]) -> bool:
        """Whether ``module`` has no state, and reads outputs of the cached part and the batch alone."""
        reads = getattr(module, "reads", batch.keys())
        tensors = list(tensors_of([batch.get(key) for key in reads]))
        owned = [bool(self._owners([tensor])) for tensor in tensors]
        known = (id(storage_of(tensor)) in self._given for tensor in tensors)
        return not has_state(module) and any(owned) and all(map(max, owned, known))

    def _note(self, owners: Iterable[_Owner]) -> None:
        self.read.update(dict.fromkeys(owners))

    def _owners(self, tensors: Iterable[Tensor]) -> list[_Owner]:
        """Owners of the storages of ``tensors``; several where a module returns another one's output."""
        storages = [storage for tensor in tensors if (storage := storage_of(tensor)) is not None]
        return [owner for storage in storages for owner in self._tags.get(id(storage), (None, ()))[1]]

    def _tag(self, tensor: Tensor, owner: _Owner) -> None:
        storage = storage_of(tensor)
        if storage is None or id(storage) in self._given:
            return
        key, others = id(storage), [other for other in self._owners([tensor]) if other.key is not None]
        reference = weakref.ref(storage, lambda _: self._tags.pop(key, None))
        self._tags[key] = (reference, tuple(dict.fromkeys([*others, owner])))


def _is_channels_last(value: Tensor) -> bool:
    """Whether ``value`` is a batch of maps in that memory format, and in no other."""
    maps = value.dim() == 4 and not value.is_contiguous()
    return maps and value.is_contiguous(memory_format=torch.channels_last)


def _is_batch(args: tuple[Any, ...]) -> bool:
    return len(args) == 1 and isinstance(args[0], dict)


def _stand_in(slot: Slot | None, value: Any) -> Any:
    """The value that replaces an output in a forward that does not compute it."""
    if slot is not None:
        return slot
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value if isinstance(value, PLAIN) else None
