"""Frozen modules whose own code branches on ``self.training`` (H3), found in the first training forward.

Layers are held by their type. Code such as ``F.dropout(x, 0.1, self.training)`` or
``F.batch_norm(..., training=self.training)`` in a forward cannot be: it has to be seen at work. So in the
first step each frozen module is run again on the very inputs that it got, without a graph:

* A and B in the mode in which it ran, with *different* seeds: whatever draws random numbers disagrees. (With
  one seed, dropout would agree with itself.)
* A2 with the seed of A: what differs here is the noise of the kernels (CUDA's atomic adds), not a draw; noise
  counts up to ``NOISE`` only, so a generator that no seed reaches is found too.
* E in eval mode: batch statistics agree with themselves from run to run, but not with the running ones. The
  two modes may take different kernels, so here only a difference above rounding (``ROUNDING``) counts.

And the frozen state, digested before and after the real forward, must be the same. A module that differs is
run once more with a record of everything inside it, so that the innermost culprit is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.engine.rng import set_seed, untouched_rng
from pcdet_freeze.engine.tensors import distance, fresh, leaves
from pcdet_freeze.freeze import FreezeHandle, is_frozen
from pcdet_freeze.freeze.apart import as_in_eval
from pcdet_freeze.freeze.certificate import frozen_tensors
from pcdet_freeze.freeze.digest import tensor_digest
from pcdet_freeze.freeze.hold import asked_mode
from pcdet_freeze.freeze.paths import find, join, unwrap, walk

NOISE = 1e-4
"""relative difference between two runs with one seed that may pass for the noise of kernels"""
ROUNDING = 1e-3
"""relative difference that may lie between train and eval mode: other kernels, the same function"""
HALF_ROUNDING = 3e-2
"""the same, where the output has 16 bits"""
SEEDS = (20, 21)


@dataclass
class Call:
    """The first outermost call of a frozen module in the first training forward."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool
    """the mode that it was asked to be in (a frozen head may run as in eval)"""


class FirstForward:
    """Watches one training forward: ``begin`` before it, ``end`` after it, ``findings`` when it is over."""

    def __init__(self, handle: FreezeHandle) -> None:
        self.handle = handle
        self.calls: list[Call] = []
        self._seen: set[int] = set()
        self._depth = 0
        self._hooks: list[Any] = []
        self._digests: dict[str, str] = {}

    def begin(self) -> None:
        """Digest the frozen state, and watch every module that is frozen with all that is in it."""
        self._digests = self._state()
        for path, module in self._whole():
            watch: Callable[..., None] = self._watcher(path)
            self._hooks.append(module.register_forward_pre_hook(watch, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def end(self) -> None:
        """Take all hooks off again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._depth = [], 0

    def findings(self) -> list[str]:
        """One line for each frozen module that computes no fixed function, or that changed its state."""
        after = self._state()
        changed = [name for name, value in self._digests.items() if after.get(name) != value]
        lines = [self._state_line(holder, changed) for holder in dict.fromkeys(map(_holder, changed))]
        told = {_holder(name) for name in changed}
        for call in self.calls:
            found = examine(call)
            if found is not None and found[0] not in told:
                told.add(found[0])
                lines.append(_line(*found))
        self.calls = []
        return lines

    def _whole(self) -> Iterator[tuple[str, nn.Module]]:
        claim = self.handle.claim
        for path, module, _ in [] if claim is None else claim.cover.modules(self.handle.model):
            if is_frozen(module):
                yield path, module

    def _watcher(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._depth == 0 and id(module) not in self._seen:
                self._seen.add(id(module))
                self.calls.append(Call(path, module, fresh(args), fresh(kwargs), asked_mode(module)))
            self._depth += 1

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _state(self) -> dict[str, str]:
        """Digests of all frozen tensors; with PARAMETERS: False, of every buffer of the named modules."""
        claim = self.handle.claim
        if claim is None:
            return {}
        whole = replace(claim, plan=replace(claim.plan, parameters=True, entries=claim.plan.entries))
        return {
            name: tensor_digest(tensor)
            for name, tensor, _ in frozen_tensors(self.handle.model, whole)
            if claim.plan.parameters or not isinstance(tensor, nn.Parameter)
        }

    def _state_line(self, holder: str, changed: list[str]) -> str:
        names = ", ".join(name for name in changed if _holder(name) == holder)
        found = find(self.handle.model, holder)
        assert found is not None
        module = unwrap(found[0])
        if not module.training:
            return (
                f"{holder} ({type(module).__name__}) changes {names} in its forward, though in eval mode. "
                f"Take it out of the list, or leave these buffers out with FREEZE.IGNORE: [{names}]"
            )
        return f"{holder} ({type(module).__name__}) changes {names} in its training forward. {_cure(holder)}"


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _line(path: str, kind: str, why: str) -> str:
    return f"{path} ({kind}) {why}. {_cure(path)}"


def _cure(path: str) -> str:
    return f"Hold it in eval: FREEZE.EVAL: [{path}]"


def examine(call: Call) -> tuple[str, str, str] | None:
    """(path, type, what is wrong) of the innermost culprit of a frozen module, or None where it is steady."""
    first, second, again = (run(call, seed) for seed in (SEEDS[0], SEEDS[1], SEEDS[0]))
    noise = min(_apart(first, again), NOISE)
    if _apart(first, second) > 4 * noise:
        path, kind = culprit(call, (SEEDS[0], call.training), (SEEDS[1], call.training), 4 * noise)
        return path, kind, "gives another output each time that it runs: its own code draws random numbers"
    if not call.training:
        return None
    limit = HALF_ROUNDING if _is_half(first) else ROUNDING
    if _apart(first, run(call, SEEDS[0], training=False), common=True) > limit:
        path, kind = culprit(call, (SEEDS[0], True), (SEEDS[0], False), limit)
        return path, kind, "gives another output in train mode than in eval: its own code asks self.training"
    return None


def run(call: Call, seed: int, training: bool | None = None) -> Any:
    """The output of the call's module on the call's inputs; the module and all generators stay as they were.

    Hooks that others put on the module see this call too.
    """
    training = call.training if training is None else training
    mode = nullcontext() if training else as_in_eval(call.module)
    with torch.no_grad(), untouched_rng(), _same_attributes(call.module), mode:
        set_seed(seed)
        return call.module(*fresh(call.args), **fresh(call.kwargs))


@contextmanager
def _same_attributes(module: nn.Module) -> Iterator[None]:
    """Put back what a forward stores on its modules (``self.forward_ret_dict``, say) for a loss to read."""
    kept = [(part, _own_attributes(part)) for part in module.modules()]
    values = [value for _, own in kept for value in own.values() if type(value) in (dict, list)]
    contents = [(value, value.copy()) for value in values]
    try:
        yield
    finally:
        for part, own in kept:
            for name in _own_attributes(part):
                del part.__dict__[name]
            part.__dict__.update(own)
        for value, content in contents:
            value.clear()
            value.update(content) if isinstance(value, dict) else value.extend(content)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """What the module's own code keeps on it; torch's dicts and the training flag are left to torch."""
    return {name: value for name, value in module.__dict__.items() if name not in _TORCHS}


_TORCHS = frozenset(nn.Module().__dict__)


def _apart(a: Any, b: Any, common: bool = False) -> float:
    """Greatest relative distance between the tensors of two outputs.

    Args:
        common: compare only what both have, in one shape: a head may return more in one mode.
    """
    left, right = dict(leaves(a)), dict(leaves(b))
    if common:
        names = [n for n, t in left.items() if n in right and right[n].shape == t.shape]
    elif left.keys() != right.keys():
        return float("inf")
    else:
        names = list(left)
    return max((distance(left[name], right[name]) for name in names), default=0.0)


def _is_half(output: Any) -> bool:
    return any(tensor.dtype in (torch.float16, torch.bfloat16) for _, tensor in leaves(output))


@dataclass
class Event:
    """A module inside a call begins or ends, with what it was given or gave."""

    path: str
    module: nn.Module
    parent: tuple[str, nn.Module]
    """whose code called it"""
    begins: bool
    tensors: dict[str, Tensor]


def culprit(call: Call, one: tuple[int, bool], other: tuple[int, bool], limit: float) -> tuple[str, str]:
    """(path, type) of the module whose own code first makes two runs differ by more than ``limit``.

    Args:
        one, other: (seed, training) of the two runs.
    """
    whole = call.path, type(call.module).__name__
    for a, b in zip(_events(call, *one), _events(call, *other), strict=False):
        if a.path != b.path or a.begins != b.begins:
            return a.parent[0], type(a.parent[1]).__name__
        if _apart(a.tensors, b.tensors, common=True) > limit:
            path, module = a.parent if a.begins else (a.path, a.module)
            return path, type(module).__name__
    return whole


def _events(call: Call, seed: int, training: bool) -> list[Event]:
    events: list[Event] = []
    stack: list[tuple[str, nn.Module]] = [(call.path, call.module)]

    def enter(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            events.append(Event(path, module, stack[-1], True, _on_cpu((args, kwargs))))
            stack.append((path, module))

        return note

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        path, _ = stack.pop()
        events.append(Event(path, module, stack[-1], False, _on_cpu(output)))

    below = {id(m): (join(call.path, path) if path else call.path, m) for path, m, _ in walk(call.module)}
    hooks: list[Any] = []
    for path, module in below.values():
        if module is not call.module:
            hooks.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            hooks.append(module.register_forward_hook(leave))
    try:
        run(call, seed, training)
    finally:
        for hook in hooks:
            hook.remove()
    return events


def _on_cpu(value: Any) -> dict[str, Tensor]:
    return {path: tensor.detach().to("cpu", copy=True) for path, tensor in leaves(value)}
