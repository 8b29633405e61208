"""Making the plan: runs of a copy of the model, recorded and compared."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.paths import unwrap, walk
from pcdet_freeze.freezing.prefix.fast_forward import FastForward, can_fold_now
from pcdet_freeze.freezing.prefix.fold_bn import Fold, ValidationFold
from pcdet_freeze.freezing.prefix.no_grad_call import is_plain_float32
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan, make_plan
from pcdet_freeze.freezing.prefix.tracer import Trace
from pcdet_freeze.freezing.state import is_fully_frozen
from pcdet_freeze.utils.tensors import relative_error, tensors_of

TOLERANCE = 2e-6
"""relative difference (L2) that a layer computed otherwise may have in float32, on the same input"""
LOOSE = 3e-2
"""the same where 16 bits or TF32 are in it: what is wrong differs by more"""


Outputs = dict[str, list[Tensor]]
"""path -> the tensors that its calls return, in order"""


def plan_for(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    options: Options | None = None,
) -> Plan:
    """The plan for training forwards of ``model``, from a forward with these arguments in its present mode.

    A copy of the model runs two or three times on copies of the arguments; random generators go on.

    Raises:
        FreezeError: a reentrant checkpoint cuts something that trains off from its gradient.
    """
    root, options, given = unwrap(model), options or Options(), (args, kwargs or {})
    if any("_orig_mod" in module._modules for module in root.modules()):
        return Plan(plain=("all of it: a part of the model is compiled",))
    try:
        twin = copy.deepcopy(root)
        still = {id(module): (path, module) for path, module, _ in walk(twin) if is_fully_frozen(module)}
        with recorded(still.values()) as before, Trace(twin) as trace:
            _run(twin, given)
    except Exception as error:  # whatever it is, the forward itself may do, or tell better
        return Plan(plain=(f"all of it: a copy of the model could not be run and watched ({error!r})",))
    plan = make_plan(trace.calls, twin, bool(options.fuse), options.compile)
    del trace
    return Validation(twin, before, given, options).judge(plan)


def _run(model: nn.Module, given: Any) -> None:
    args, kwargs = copy.deepcopy(given)
    model(*args, **kwargs)


class Validation:
    """Runs a copy of the model by a plan, and compares with what it put out when it ran as written."""

    def __init__(self, twin: nn.Module, before: Outputs, given: Any, options: Options) -> None:
        self.twin, self.before, self.given, self.options = twin, before, given, options
        self.tops = [(path, module) for path, module, _ in walk(twin) if path in before]

    def judge(self, plan: Plan) -> Plan:
        """``plan`` less what gives other outputs on the same inputs; with how far off the prefix is then."""
        if plan.folds and not can_fold_now(self.twin, self.options):
            rule = "autocast or TF32 is on (FREEZE.FUSE: force folds there too)"
            plan = replace(plan, folds=(), plain=(*plan.plain, f"{len(plan.folds)} norm layers: {rule}"))
        if plan.folds or plan.quick:
            plan = plan.without(self._too_far(plan))
        if plan.compiled:
            plan = self._try_compiling(plan)
        if plan.folds or plan.quick or plan.compiled or self.options != Options(self.options.fuse):
            _, after = self._outputs(plan, self.options, Fold)
            half_done = {layer for layer, _ in plan.folds}
            # a module whose child was replaced counts as frozen only from the middle of the run on
            whole = [path for path in plan.prefix if path in self.before and path not in half_done]
            off = (output_error(self.before[path], after[path]) for path in whole)
            plan = replace(plan, difference=max(off, default=0.0))
        return plan

    def _too_far(self, plan: Plan) -> dict[str, float]:
        """Norm layers and quick forms that differ by more than the tolerance, and by how much."""
        exact = is_plain_float32(self.twin)
        options = Options("force" if self.options.fuse == "force" else True)
        fast, after = self._outputs(replace(plan, compiled=()), options, ValidationFold)
        off = {}
        if can_fold_now(self.twin, options):
            off = {
                norm: getattr(fold, "off", 0.0)
                for (_, norm), fold in zip(plan.folds, fast.folds, strict=True)
            }
        off |= {path: output_error(self.before.get(path, ()), after.get(path, ())) for path in plan.quick}
        return {path: far for path, far in off.items() if not far <= (TOLERANCE if exact else LOOSE)}

    def _try_compiling(self, plan: Plan) -> Plan:
        try:
            self._outputs(plan, self.options, Fold)
        except Exception as error:  # there are many ways in which a compiler may be missing
            first = (str(error).strip() or repr(error)).splitlines()[0]
            note = f"{', '.join(plan.compiled)}: torch.compile does not work here ({first})"
            return replace(plan, compiled=(), plain=(*plan.plain, note))
        return plan

    def _outputs(self, plan: Plan, options: Options, kind: type[Fold]) -> tuple[FastForward, Outputs]:
        fast = FastForward(self.twin, plan, options, kind)
        with torch.no_grad(), fast, recorded(self.tops) as after:
            _run(self.twin, self.given)
        return fast, after


@contextmanager
def recorded(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Outputs]:
    """Copies of what each of ``modules`` puts out, as long as none of the others called it."""
    found: Outputs = {}
    depth: list[int] = []
    hooks: list[Any] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        depth.append(len(depth))
        given.append({id(tensor) for tensor in tensors_of((args, kwargs))})

    def leave_as(path: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            depth.pop()
            known = given.pop()
            if not depth:
                # a dict that is filled on its way through the modules holds what others wrote, too
                new = [t for t in tensors_of(output) if isinstance(output, Tensor) or id(t) not in known]
                found.setdefault(path, []).extend(tensor.detach().clone() for tensor in new)

        return leave

    given: list[set[int]] = []
    for path, module in modules:
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave_as(path), always_call=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def output_error(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest :func:`relative_error` of two lists of outputs; infinite where they do not match.

    Integers and booleans (indices, masks) must be equal: an index that is nearly right is wrong.
    """
    if len(before) != len(after):
        return float("inf")
    return max((_error(a, b) for a, b in zip(before, after, strict=True)), default=0.0)


def _error(a: Tensor, b: Tensor) -> float:
    if a.is_floating_point() or a.is_complex():
        return relative_error(a, b)
    return 0.0 if torch.equal(a, b) else float("inf")
