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

* A twice in a row, with one seed: what counts its calls or remembers the last one disagrees with itself.

And the frozen state, digested before and after the real forward, must be the same. A module that differs is
run once more with a record of everything inside it, so that the innermost culprit is named.

What draws random numbers in eval mode too cannot be cured by holding it: that is a note and no fault. Heads
that still give their loss (FREEZE.PARAMETERS: False) are not run again: they sample for it in train mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pcdet_freeze.freezing import FreezeHandle, is_frozen
from pcdet_freeze.freezing.certificate import frozen_tensors
from pcdet_freeze.freezing.checks.rerun_call import Call, apart, culprit, culprit_in_a_row, run, run_in_a_row
from pcdet_freeze.freezing.digest import tensor_digest
from pcdet_freeze.freezing.eval_lock import requested_mode
from pcdet_freeze.freezing.paths import find, is_within, unwrap
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.tensors import fresh, leaves

NOISE = 1e-4
"""relative difference between two runs with one seed that may pass for the noise of kernels"""
ROUNDING = 1e-3
"""relative difference that may lie between train and eval mode: other kernels, the same function"""
HALF_ROUNDING = 3e-2
"""the same, where the output has 16 bits"""
SEEDS = (20, 21)


class FirstForward:
    """Watches one training forward: ``begin`` before it, ``end`` after it, ``findings`` when it is over."""

    def __init__(self, handle: FreezeHandle) -> None:
        self.handle = handle
        self.calls: list[Call] = []
        self.notes: list[str] = []
        """what ``findings`` saw that is no fault"""
        self._seen: set[int] = set()
        self._depth = 0
        self._hooks: list[Any] = []
        self._digests: dict[str, str] = {}

    def begin(self) -> None:
        """Digest the frozen state, and watch every module that is frozen with all that is in it."""
        self._digests = self._state()
        for path, module in self._whole():
            enter, leave = PicklableHook(self._watcher(path)), PicklableHook(self._leave)
            self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(leave, always_call=True))

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
            if found is None or found.path in told:
                continue
            told.add(found.path)
            if found.curable:
                lines.append(f"{found}. {_cure(found.path)}")
            else:
                self.notes.append(f"{found}, in eval mode too, so its output differs from run to run")
        self.calls = []
        return lines

    def _whole(self) -> Iterator[tuple[str, nn.Module]]:
        request = self.handle.request
        covered = [] if request is None else list(request.module_set.modules(self.handle.model))
        heads = [path for path, module, _ in covered if callable(getattr(module, "get_loss", None))]
        sampling = [] if self.handle.plan.parameters else heads
        for path, module, _ in covered:
            if is_frozen(module) and not any(is_within(path, head) for head in sampling):
                yield path, module

    def _watcher(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._depth == 0 and id(module) not in self._seen:
                self._seen.add(id(module))
                self.calls.append(Call(path, module, fresh(args), fresh(kwargs), requested_mode(module)))
            self._depth += 1

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _state(self) -> dict[str, str]:
        """Digests of all frozen tensors; with PARAMETERS: False, of every buffer of the named modules."""
        request = self.handle.request
        if request is None:
            return {}
        whole = replace(request, plan=replace(request.plan, parameters=True, entries=request.plan.entries))
        return {
            name: tensor_digest(tensor)
            for name, tensor, _ in frozen_tensors(self.handle.model, whole)
            if request.plan.parameters or not isinstance(tensor, nn.Parameter)
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


def _cure(path: str) -> str:
    return f"Hold it in eval: FREEZE.EVAL: [{path}]"


@dataclass(frozen=True)
class Finding:
    """A module that computes no fixed function."""

    path: str
    kind: str
    why: str
    curable: bool = True
    """whether eval mode makes it one"""

    def __str__(self) -> str:
        """ "vfe.1 (Noise) gives another output each time that it runs: ..."."""
        return f"{self.path} ({self.kind}) {self.why}"


def examine(call: Call) -> Finding | None:
    """The innermost culprit in a frozen module, or None where it is steady."""
    first, drawn = _draws(call, call.training)
    if not call.training:
        drawn = drawn or _remembers(call, training=False)
        return None if drawn is None else replace(drawn, curable=False)
    quiet, drawn_in_eval = _draws(call, training=False)
    if drawn_in_eval is not None and (drawn is None or drawn.path == drawn_in_eval.path):
        return replace(drawn_in_eval, curable=False)
    limit = HALF_ROUNDING if _is_half(first) else ROUNDING
    if drawn is None and apart(first, quiet, common=True) > limit:
        path, kind = culprit(call, (SEEDS[0], True), (SEEDS[0], False), limit)
        drawn = Finding(
            path, kind, "gives another output in train mode than in eval: its own code asks self.training"
        )
    if drawn is None and (found := _remembers(call, training=True)) is not None:
        return replace(found, curable=_remembers(call, training=False) is None)
    return drawn


def _draws(call: Call, training: bool) -> tuple[Any, Finding | None]:
    """The output with one seed, and who makes that with another seed differ from it, if anybody does."""
    first, second = (run(call, seed, training) for seed in SEEDS)
    difference = apart(first, second)
    noise = 4 * min(apart(first, run(call, SEEDS[0], training)), NOISE) if difference else 0.0
    if difference <= noise:
        return first, None
    path, kind = culprit(call, (SEEDS[0], training), (SEEDS[1], training), noise)
    return first, Finding(
        path, kind, "gives another output each time that it runs: its own code draws random numbers"
    )


def _remembers(call: Call, training: bool) -> Finding | None:
    """Who makes a second run in a row differ from the first, if anybody does."""
    first, second = run_in_a_row(call, SEEDS[0], training)
    difference = apart(first, second)
    noise = 4 * min(apart(first, run(call, SEEDS[0], training)), NOISE) if difference else 0.0
    if difference <= noise:
        return None
    path, kind = culprit_in_a_row(call, SEEDS[0], training, noise)
    return Finding(path, kind, "gives another output when it runs again: its own code counts or remembers")


def _is_half(output: Any) -> bool:
    return any(tensor.dtype in (torch.float16, torch.bfloat16) for _, tensor in leaves(output))
