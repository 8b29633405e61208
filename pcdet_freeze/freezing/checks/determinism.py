"""Find frozen modules whose own code depends on ``self.training`` (H3), in the first training forward.

Layers are locked in eval mode by their type. Code such as ``F.dropout(x, 0.1, self.training)`` or
``F.batch_norm(..., training=self.training)`` in a forward cannot be found by type, only by running it. So in
the first step each frozen module runs twice more on the inputs that it gets, without a graph, right before
its own call: in the mode in which it will run, and in eval mode (:mod:`.examine_call`). The frozen state,
digested before and after the forward, must be the same.

A module that draws random numbers in eval mode too cannot be fixed by eval mode: that is a note, not an
error. So is noise of the kernels. Heads that still give their loss (FREEZE.PARAMETERS: False) are not run
again: they sample for it in train mode.

Where a module cannot run so, or where memory runs out, the check is off for that module, or altogether, with
a note: the training goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pcdet_freeze.freezing import FreezeHandle, is_frozen
from pcdet_freeze.freezing.checks.eval_advice import Advice
from pcdet_freeze.freezing.checks.examine_call import CallExamination, Finding
from pcdet_freeze.freezing.checks.output_sketch import Sketcher
from pcdet_freeze.freezing.checks.rerun_call import Call, alias, instance_forward
from pcdet_freeze.freezing.entries.paths import find, is_within, unwrap
from pcdet_freeze.freezing.eval_lock import requested_mode
from pcdet_freeze.freezing.verification.certificate import digests_of, frozen_tensors
from pcdet_freeze.utils.memory import free_cached_memory, is_memory_error
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.wrappers import is_compiled


class DeterminismCheck:
    """Checks one training forward: call ``begin`` before it, ``end`` after it, then ``findings``.

    Args:
        handle: the freeze whose modules are checked.
    """

    def __init__(self, handle: FreezeHandle) -> None:
        self.handle = handle
        self.notes: list[str] = []
        """findings that are no error, one line each"""
        self._found: list[Finding] = []
        self._seen: set[int] = set()
        self._depth = 0
        self._hooks: list[Any] = []
        self._digests: dict[str, str] = {}
        self._sketcher = Sketcher()
        self._forwards: dict[nn.Module, Any] = {}
        self._examination: CallExamination | None = None
        self._is_rerun = self._is_off = False

    def begin(self) -> None:
        """Digest the frozen state and hook every frozen module; where memory runs out, turn the check off."""
        self._digests = {}
        if self._is_off:
            return
        try:
            self._digests = self._state()
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            self.turn_off("to digest the frozen state", error)
            return
        for path, module in self._frozen_modules():
            self._forwards |= {part: instance_forward(part) for part in module.modules()}
            enter, leave = (
                PicklableHook(_not_compiled(self._enter(path))),
                PicklableHook(_not_compiled(self._leave)),
            )
            # the first of the pre-hooks: in a rerun the others change the inputs once more
            hook = module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
            self._hooks += [hook, module.register_forward_hook(leave, always_call=True)]

    def end(self) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._forwards, self._depth, self._examination = [], {}, 0, None

    def turn_off(self, where: str, error: BaseException) -> None:
        """Examine no further module, and note that memory ran out ``where``."""
        self._is_off, self._examination = True, None
        self.notes.append(_NO_MEMORY.format(where, _first_line(error)))
        free_cached_memory()

    def findings(self) -> list[str]:
        """One line for each frozen module that is not deterministic or that changed its state."""
        before = self._digests
        after = self._state() if before else {}
        changed = [name for name, value in before.items() if after.get(name) != value]
        fixes, fixes_of_notes = (Advice(self.handle.model, self._frozen_modules()) for _ in range(2))
        lines = [self._state_line(holder, changed, fixes) for holder in dict.fromkeys(map(_holder, changed))]
        reported = {_holder(name) for name in changed}
        for found in self._found:
            if found.path in reported:
                continue
            reported.add(found.path)
            if found.is_rare:
                self.notes.append(fixes_of_notes.after(str(found), found.path))
            elif found.fixed_by_eval:
                lines.append(fixes.after(str(found), found.path))
            elif found.is_noise:
                self.notes.append(str(found))
            else:
                self.notes.append(f"{found}, in eval mode too: its output differs from run to run")
        self._found = []
        return lines

    def _frozen_modules(self) -> Iterator[tuple[str, nn.Module]]:
        request = self.handle.request
        covered = [] if request is None else list(request.module_set.modules(self.handle.model))
        heads = [path for path, module, _ in covered if callable(getattr(module, "get_loss", None))]
        sampling = [] if self.handle.plan.parameters else heads
        # torch.compile traces these: the compiled module around them is hooked
        traced = {p for _, module, _ in covered if is_compiled(module) for p in module.modules()}
        traced -= {module for module in traced if is_compiled(module)}
        for path, module, _ in covered:
            if module in traced:
                continue
            if is_frozen(module) and not any(is_within(path, head) for head in sampling):
                yield path, module

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._is_rerun:
                return
            if self._depth == 0 and id(module) not in self._seen and not self._is_off:
                self._seen.add(id(module))
                self._before(path, module, args, kwargs)
            self._depth += 1

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_rerun:
            return
        self._depth -= 1
        examination = self._examination
        if self._depth == 0 and examination is not None:
            self._examination = None
            if output is not None:  # it raised, or it returns nothing that could be compared
                self._attempt(examination.call.path, lambda: self._after(examination, output))

    def _before(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forwards = {part: self._forwards[part] for part in module.modules() if part in self._forwards}

        def examine() -> None:
            own_args, own_kwargs = alias((args, kwargs))
            mode = requested_mode(module)
            call = Call(path, module, own_args, own_kwargs, mode, self._sketcher, forwards)
            self._examination = examination = CallExamination(call, (args, kwargs))
            examination.run_as_called()
            examination.run_in_eval()

        forwards = {part: self._forwards[part] for part in module.modules() if part in self._forwards}
        self._attempt(path, examine)

    def _after(self, examination: CallExamination, output: Any) -> None:
        found = examination.after(output)
        if found is not None:
            self._found.append(found)

    def _attempt(self, path: str, examine: Callable[[], None]) -> None:
        """Examine the module at ``path``; any error is a note, since the step's own call may succeed.

        It has a graph, for example, which these runs have not. What it raises itself ends the training.
        """
        self._is_rerun = True
        try:
            examine()
        except Exception as error:
            if is_memory_error(error):
                self.turn_off(f"to run {path} again", error)
            else:
                self._examination = None
                self.notes.append(_CANNOT_RUN.format(path, _first_line(error)))
        finally:
            self._is_rerun = False

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

    def _state_line(self, holder: str, changed: list[str], fixes: Advice) -> str:
        names = ", ".join(name for name in changed if _holder(name) == holder)
        found = find(self.handle.model, holder)
        assert found is not None
        module = unwrap(found[0])
        if not module.training:
            return (
                f"{holder} ({type(module).__name__}) changes {names} in its forward, in eval mode too. "
                f"Remove it from the list, or exclude these buffers with FREEZE.IGNORE: [{names}]"
            )
        finding = f"{holder} ({type(module).__name__}) changes {names} in its training forward"
        return fixes.after(finding, holder)


def _holder(name: str) -> str:
    return name.rpartition(".")[0]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"


def _not_compiled(hook: Callable[..., None]) -> Callable[..., None]:
    """``hook``, never traced by torch.compile; where nothing was compiled yet, that is not imported."""
    return torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook


_NO_MEMORY = (
    "The determinism check of frozen modules (H3) is off: there was not enough memory {} ({}). The training "
    "goes on; modules that were not examined may depend on self.training"
)
_CANNOT_RUN = (
    "{} could not be run again on its inputs ({}), so it is not known whether it is deterministic (H3)"
)
