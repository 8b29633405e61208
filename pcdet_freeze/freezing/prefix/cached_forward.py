"""Training forwards that record the outputs of the cached part, or replace it by recorded ones (F7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.entries.paths import walk
from pcdet_freeze.freezing.prefix.boundary import Boundary, Slot
from pcdet_freeze.freezing.prefix.fast_forward import FastForward
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan


class OutputRecorder(Protocol):
    """Records the tensors of one forward, or supplies them."""

    supplies: bool
    """whether it has the tensors of this forward, so that the cached part need not run"""

    def take(self, slot: Slot, value: Tensor) -> Tensor:
        """Record a computed tensor; the forward continues with the return value."""

    def give(self, slot: Slot) -> Tensor:
        """Return the tensor that replaces the computed one."""

    def finish(self) -> None:
        """Called after a forward in which every slot was recorded or supplied."""

    def abort(self) -> None:
        """Called after any other forward."""


class CachedForward(FastForward):
    """A :class:`FastForward` in which ``recorder`` records or supplies what crosses ``boundary``."""

    def __init__(
        self, model: nn.Module, plan: Plan, options: Options, boundary: Boundary, recorder: OutputRecorder
    ) -> None:
        super().__init__(model, plan, options)
        self.boundary, self.recorder = boundary, recorder
        self.computed: dict[int, tuple[Tensor, Tensor]] = {}
        """id of a tensor that replaces a computed one -> (that tensor, the computed one)"""
        self.times: Counter[str] = Counter()
        self.passed: set[Slot] = set()
        modules = {path: module for path, module, _ in walk(self.root)}
        self._cached = [(path, modules[path]) for path in boundary.paths]

    def __exit__(self, *error: Any) -> None:
        finished = False
        try:
            super().__exit__(*error)
            if error[0] is None and self.passed == set(self.boundary.slots):
                self.recorder.finish()
                finished = True
        finally:
            if not finished:
                self.recorder.abort()
            self.computed, self.passed, self.times = {}, set(), Counter()

    def _forwards(self) -> dict[nn.Module, Any]:
        found = super()._forwards()
        for path, module in self._cached:
            found[module] = _CachedCall(self, path, found.get(module, module.forward))
        return found


class _CachedCall:
    """Replaces the forward of a module of the cached part."""

    def __init__(self, owner: CachedForward, path: str, forward: Any) -> None:
        self.owner, self.path, self.forward = owner, path, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        number = self.owner.times[self.path]
        self.owner.times[self.path] += 1
        output = self.owner.boundary.outputs.get((self.path, number))
        if output is None:
            return self.forward(*args, **kwargs)
        if self.owner.recorder.supplies:
            values = {key: self._given(value) for key, value in output.values.items()}
            return _output(output.form, args, values)
        with self._computed(args) as own:
            result = self.forward(*own, **kwargs)
        slots = {key: value for key, value in output.values.items() if isinstance(value, Slot)}
        if output.form == "value":
            return self._taken(slots[""], result) if slots else result
        result.update({key: self._taken(slot, result[key]) for key, slot in slots.items()})
        return result

    def _given(self, value: Any) -> Any:
        if not isinstance(value, Slot):
            return value
        self.owner.passed.add(value)
        return _as_computed(value, self.owner.recorder.give(value))

    def _taken(self, slot: Slot, value: Tensor) -> Tensor:
        self.owner.passed.add(slot)
        instead = _as_computed(slot, self.owner.recorder.take(slot, value))
        self.owner.computed[id(instead)] = (instead, value)
        return instead

    @contextmanager
    def _computed(self, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """``args`` with computed tensors in place of their replacements, so that rounding does not add up."""
        known = self.owner.computed
        if len(args) != 1 or not isinstance(args[0], dict):
            yield tuple(known[id(arg)][1] if id(arg) in known else arg for arg in args)
            return
        swapped = {key: known[id(value)] for key, value in args[0].items() if id(value) in known}
        args[0].update({key: value for key, (_, value) in swapped.items()})
        yield args
        for key, (instead, value) in swapped.items():
            if args[0].get(key) is value:
                args[0][key] = instead


def _as_computed(slot: Slot, value: Tensor) -> Tensor:
    """``value`` in the memory format that the forward computed."""
    return value.contiguous(memory_format=torch.channels_last) if slot.channels_last else value


def _output(form: str, args: tuple[Any, ...], values: dict[str, Any]) -> Any:
    if form == "batch":
        args[0].update(values)
        return args[0]
    return values if form == "dict" else values[""]
