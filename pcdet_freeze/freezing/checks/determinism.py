"""Find frozen modules whose own code depends on ``self.training`` (H3), in the first training forward.

Layers are locked in eval mode by their type. Code such as ``F.dropout(x, 0.1, self.training)`` or
``F.batch_norm(..., training=self.training)`` in a forward cannot be found by type, only by running it. So in
the first step each frozen module is run again on the inputs that it got, without a graph:

* A and B in the mode in which it ran, with *different* seeds: a module that draws random numbers gives two
  outputs. (With one seed, dropout would give the same output twice.)
* A2 with the seed of A: a difference here is the noise of the kernels (CUDA's atomic adds), not a draw. Noise
  counts up to ``NOISE`` only, so that a generator that ignores the seed is found too.
* E in eval mode: a module that normalises with batch statistics gives the same output in each run, but
  another one than with its running statistics. The two modes may use different kernels, so only a difference
  above rounding (``ROUNDING``) counts.
* A twice in a row, with one seed: a module that counts its calls or remembers the last one differs.

The frozen state, digested before and after the real forward, must be the same. A module that differs is run
once more while everything inside it is recorded, so that the error names the innermost module at fault.

A module that draws random numbers in eval mode too cannot be fixed by eval mode: that is a note, not an
error. Heads that still give their loss (FREEZE.PARAMETERS: False) are not run again: they sample for it in
train mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pcdet_freeze.freezing import FreezeHandle, is_frozen
from pcdet_freeze.freezing.certificate import digests_of, frozen_tensors
from pcdet_freeze.freezing.checks.rerun_call import (
    Call,
    first_difference,
    first_difference_in_a_row,
    max_relative_error,
    run,
    run_in_a_row,
)
from pcdet_freeze.freezing.eval_lock import requested_mode
from pcdet_freeze.freezing.paths import find, is_within, unwrap
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.tensors import clone_detached, tensors_with_path

NOISE = 1e-4
"""relative error between two runs with one seed up to which it counts as noise of the kernels"""
ROUNDING = 1e-3
"""relative error allowed between train and eval mode, which may use different kernels"""
HALF_ROUNDING = 3e-2
"""the same for outputs of 16 bits"""
SEEDS = (20, 21)


class DeterminismCheck:
    """Checks one training forward: call ``begin`` before it, ``end`` after it, then ``findings``.

    Args:
        handle: the freeze whose modules are checked.
    """

    def __init__(self, handle: FreezeHandle) -> None:
        self.handle = handle
        self.calls: list[Call] = []
        self.notes: list[str] = []
        """findings that are no error, one line each"""
        self._seen: set[int] = set()
        self._depth = 0
        self._hooks: list[Any] = []
        self._digests: dict[str, str] = {}

    def begin(self) -> None:
        """Digest the frozen state and hook every frozen module."""
        self._digests = self._state()
        for path, module in self._frozen_modules():
            enter, leave = PicklableHook(self._recorder(path)), PicklableHook(self._leave)
            self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def end(self) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._depth = [], 0

    def findings(self) -> list[str]:
        """One line for each frozen module that is not deterministic or that changed its state."""
        after = self._state()
        changed = [name for name, value in self._digests.items() if after.get(name) != value]
        lines = [self._state_line(holder, changed) for holder in dict.fromkeys(map(_holder, changed))]
        reported = {_holder(name) for name in changed}
        for call in self.calls:
            found = examine(call)
            if found is None or found.path in reported:
                continue
            reported.add(found.path)
            if found.fixed_by_eval:
                lines.append(f"{found}. {_advice(found.path)}")
            else:
                self.notes.append(f"{found}, in eval mode too: its output differs from run to run")
        self.calls = []
        return lines

    def _frozen_modules(self) -> Iterator[tuple[str, nn.Module]]:
        request = self.handle.request
        covered = [] if request is None else list(request.module_set.modules(self.handle.model))
        heads = [path for path, module, _ in covered if callable(getattr(module, "get_loss", None))]
        sampling = [] if self.handle.plan.parameters else heads
        for path, module, _ in covered:
            if is_frozen(module) and not any(is_within(path, head) for head in sampling):
                yield path, module

    def _recorder(self, path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._depth == 0 and id(module) not in self._seen:
                self._seen.add(id(module))
                self.calls.append(
                    Call(path, module, clone_detached(args), clone_detached(kwargs), requested_mode(module))
                )
            self._depth += 1

        return record

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1

    def _state(self) -> dict[str, str]:
        """Digests of all frozen tensors; with PARAMETERS: False, of all buffers of the named modules."""
        request = self.handle.request
        if request is None:
            return {}
        whole = replace(request, plan=replace(request.plan, parameters=True, entries=request.plan.entries))
        return digests_of(
            {
                name: tensor
                for name, tensor, _ in frozen_tensors(self.handle.model, whole)
                if request.plan.parameters or not isinstance(tensor, nn.Parameter)
            }
        )

    def _state_line(self, holder: str, changed: list[str]) -> str:
        names = ", ".join(name for name in changed if _holder(name) == holder)
        found = find(self.handle.model, holder)
        assert found is not None
        module = unwrap(found[0])
        if not module.training:
            return (
                f"{holder} ({type(module).__name__}) changes {names} in its forward, in eval mode too. "
                f"Remove it from the list, or exclude these buffers with FREEZE.IGNORE: [{names}]"
            )
        return (
            f"{holder} ({type(module).__name__}) changes {names} in its training forward. {_advice(holder)}"
        )


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _advice(path: str) -> str:
    return f"Lock it in eval mode: FREEZE.EVAL: [{path}]"


@dataclass(frozen=True)
class Finding:
    """A module that is not deterministic."""

    path: str
    kind: str
    why: str
    fixed_by_eval: bool = True
    """whether it is deterministic in eval mode"""

    def __str__(self) -> str:
        """As ``vfe.1 (Noise) is not deterministic: its forward() draws random numbers``."""
        return f"{self.path} ({self.kind}) {self.why}"


def examine(call: Call) -> Finding | None:
    """The innermost module at fault in one call of a frozen module; None where it is deterministic."""
    first, drawn = _draws(call, call.training)
    if not call.training:
        drawn = drawn or _remembers(call, training=False)
        return None if drawn is None else replace(drawn, fixed_by_eval=False)
    in_eval, drawn_in_eval = _draws(call, training=False)
    if drawn_in_eval is not None and (drawn is None or drawn.path == drawn_in_eval.path):
        return replace(drawn_in_eval, fixed_by_eval=False)
    limit = HALF_ROUNDING if _is_half(first) else ROUNDING
    if drawn is None and max_relative_error(first, in_eval, common=True) > limit:
        path, kind = first_difference(call, (SEEDS[0], True), (SEEDS[0], False), limit)
        drawn = Finding(
            path, kind, "differs between train and eval mode: its forward() depends on self.training"
        )
    if drawn is None and (found := _remembers(call, training=True)) is not None:
        return replace(found, fixed_by_eval=_remembers(call, training=False) is None)
    return drawn


def _draws(call: Call, training: bool) -> tuple[Any, Finding | None]:
    """(output with one seed, the module that makes the output with another seed differ, or None)."""
    first, second = (run(call, seed, training) for seed in SEEDS)
    difference = max_relative_error(first, second)
    noise = 4 * min(max_relative_error(first, run(call, SEEDS[0], training)), NOISE) if difference else 0.0
    if difference <= noise:
        return first, None
    path, kind = first_difference(call, (SEEDS[0], training), (SEEDS[1], training), noise)
    return first, Finding(path, kind, "is not deterministic: its forward() draws random numbers")


def _remembers(call: Call, training: bool) -> Finding | None:
    """The module that makes a second run in a row differ from the first, or None."""
    first, second = run_in_a_row(call, SEEDS[0], training)
    difference = max_relative_error(first, second)
    noise = 4 * min(max_relative_error(first, run(call, SEEDS[0], training)), NOISE) if difference else 0.0
    if difference <= noise:
        return None
    path, kind = first_difference_in_a_row(call, SEEDS[0], training, noise)
    return Finding(path, kind, "is not deterministic: its forward() depends on earlier calls")


def _is_half(output: Any) -> bool:
    return any(tensor.dtype in (torch.float16, torch.bfloat16) for _, tensor in tensors_with_path(output))
