"""Training forwards whose prefix's outputs are taken down, or supplied instead of being computed (F7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from pcdet_freeze.freezing.paths import walk
from pcdet_freeze.freezing.prefix.boundary import Boundary, Slot
from pcdet_freeze.freezing.prefix.fast_forward import FastForward
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan


class OutputRecorder(Protocol):
    """Who takes values down, or has them."""

    supplies: bool
    """it has the values of this forward: the cached part need not run"""

    def take(self, slot: Slot, value: Tensor) -> Tensor:
        """Take down what was computed; the forward goes on with what is returned."""

    def give(self, slot: Slot) -> Tensor:
        """What goes on in place of the computed value."""

    def finish(self) -> None:
        """The forward is over, and every slot was taken or given."""


class CachedForward(FastForward):
    """A :class:`FastForward` in which ``keeper`` sees or supplies what crosses ``border``."""

    def __init__(
        self, model: nn.Module, plan: Plan, options: Options, border: Boundary, keeper: OutputRecorder
    ) -> None:
        super().__init__(model, plan, options)
        self.border, self.keeper = border, keeper
        self.computed: dict[int, tuple[Tensor, Tensor]] = {}
        """id of a tensor that went on in place of a computed one -> both"""
        self.times: Counter[str] = Counter()
        self.passed: set[Slot] = set()
        modules = {path: module for path, module, _ in walk(self.root)}
        self._cached = [(path, modules[path]) for path in border.paths]

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
            if error[0] is None and self.passed == set(self.border.slots):
                self.keeper.finish()
        finally:
            self.computed, self.passed, self.times = {}, set(), Counter()

    def _forwards(self) -> dict[nn.Module, Any]:
        found = super()._forwards()
        for path, module in self._cached:
            found[module] = _CachedCall(self, path, found.get(module, module.forward))
        return found


class _CachedCall:
    """What is called in place of the forward of a module of the cached part."""

    def __init__(self, owner: CachedForward, path: str, forward: Any) -> None:
        self.owner, self.path, self.forward = owner, path, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        number = self.owner.times[self.path]
        self.owner.times[self.path] += 1
        output = self.owner.border.outputs.get((self.path, number))
        if output is None:
            return self.forward(*args, **kwargs)
        if self.owner.keeper.supplies:
            values = {key: self._given(value) for key, value in output.values.items()}
            return _put_out(output.form, args, values)
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
        return self.owner.keeper.give(value)

    def _taken(self, slot: Slot, value: Tensor) -> Tensor:
        self.owner.passed.add(slot)
        instead = self.owner.keeper.take(slot, value)
        self.owner.computed[id(instead)] = (instead, value)
        return instead

    @contextmanager
    def _computed(self, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """``args`` with what was computed in place of what went on, so that rounding does not add up."""
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


def _put_out(form: str, args: tuple[Any, ...], values: dict[str, Any]) -> Any:
    if form == "batch":
        args[0].update(values)
        return args[0]
    return values if form == "dict" else values[""]
