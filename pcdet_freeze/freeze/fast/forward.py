"""The plan at work: from the beginning of a training forward to its end, and not a moment longer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freeze.fast.folding import Fold, TrialFold
from pcdet_freeze.freeze.fast.outputs import Outputs, difference, recorded
from pcdet_freeze.freeze.fast.planning import QUICK_FORM, Plan, make_plan
from pcdet_freeze.freeze.fast.siblings import Siblings
from pcdet_freeze.freeze.fast.trace import Trace
from pcdet_freeze.freeze.fast.values import tensors_of
from pcdet_freeze.freeze.paths import unwrap, walk
from pcdet_freeze.freeze.records import freeze_stamp, is_still

TOLERANCE = 2e-6
"""relative difference (L2) that a layer computed otherwise may have in float32, on the same input"""
LOOSE = 3e-2
"""the same where 16 bits or TF32 are in it: what is wrong differs by more"""


class FastForward:
    """Runs training forwards of ``model`` by a plan that it makes from a recorded run on a copy.

    >>> fast = FastForward(model)
    >>> fast.prepare(batch)     # the first time, and after a change of what is frozen: two runs of a copy
    >>> with fast:
    ...     model(batch)

    Between forwards the model is as it was. Random generators are used in ``prepare``, not put back.

    Args:
        model: the frozen model; wrappers are seen through.
        fuse: True: compute layers as one where that is exact but for rounding; not under autocast or TF32.
            "force": there too. False: only leave the prefix's graph away, which changes no bit.
    """

    def __init__(self, model: nn.Module, fuse: bool | str = True) -> None:
        self.root = unwrap(model)
        self.fuse = fuse
        self.plan = Plan()
        self._stamp: object = None
        self._still: tuple[int, ...] = ()
        self._changed: list[nn.Module] = []
        self.take(self.plan)

    def prepare(self, *args: Any, **kwargs: Any) -> bool:
        """Make the plan for a forward with these arguments, unless there is one; returns whether it was made.

        Raises FreezeError where a reentrant checkpoint cuts something that trains off from its gradient.
        """
        if self._stamp is freeze_stamp():
            return False
        self._stamp, still = freeze_stamp(), tuple(id(m) for m in self.root.modules() if is_still(m))
        if still == self._still:
            return False
        self._still = still
        self.take(plan_for(self.root, args, kwargs, self.fuse))
        return True

    def take(self, plan: Plan, kind: type[Fold] = Fold) -> None:
        """Work by ``plan`` from now on."""
        self.plan = plan
        modules = {path: module for path, module, _ in walk(self.root)}
        self.folds = [kind(modules[layer], modules[norm]) for layer, norm in plan.folds]
        self._siblings = [Siblings([modules[path] for path in group]) for group in plan.siblings]
        self._quick = [modules[path] for path in plan.quick]
        self._prefix = [modules[path] for path in plan.prefix]

    def __enter__(self) -> FastForward:
        forwards: dict[nn.Module, Any] = {}
        if self.fuse == "force" or is_plain_float32(self.root):
            for fold in self.folds:
                forwards.update(fold.forwards())
        for group in self._siblings:
            forwards.update(group.forwards())
        for module in self._quick:
            forwards[module] = getattr(module, QUICK_FORM)
        for module in self._prefix:
            forwards[module] = without_graph(module, forwards.get(module, module.forward))
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        self._changed = list(forwards)
        return self

    def __exit__(self, *error: Any) -> None:
        for module in self._changed:
            module.__dict__.pop("forward", None)
        self._changed = []
        for group in self._siblings:
            group.clear()
        unanswered = [pair for pair, fold in zip(self.plan.folds, self.folds, strict=True) if fold.clear()]
        if unanswered and error[0] is None:
            layer, norm = unanswered[0]
            raise FreezeError(
                f"A frozen module must do the same in every step for {norm} to be folded into {layer}, but "
                f"this time {norm} did not run behind it. Set MODEL.FREEZE.FUSE: False."
            )


def without_graph(module: nn.Module, forward: Any) -> Any:
    """``forward`` of ``module`` under no_grad, as long as nothing that it reads requires a gradient."""
    reads = getattr(module, "reads", None)

    def run(*args: Any, **kwargs: Any) -> Any:
        given: Any = (args, kwargs)
        if isinstance(reads, tuple) and len(args) == 1 and isinstance(args[0], Mapping):
            given = [args[0].get(key) for key in reads]
        if any(tensor.requires_grad for tensor in tensors_of(given)):
            return forward(*args, **kwargs)
        with torch.no_grad():
            return forward(*args, **kwargs)

    return run


def plan_for(root: nn.Module, args: Any, kwargs: Any, fuse: bool | str) -> Plan:
    """Record a forward of a copy of ``root``, plan, and compare the plan's outputs with the recorded ones."""
    if any("_orig_mod" in module._modules for module in root.modules()):
        return Plan(plain=("all of it: a part of the model is compiled",))
    try:
        twin = copy.deepcopy(root)
        still = {id(module): (path, module) for path, module, _ in walk(twin) if is_still(module)}
        with recorded(still.values()) as before, Trace(twin) as trace:
            twin(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    except Exception as error:  # whatever it is, the forward itself may do, or tell better
        return Plan(plain=(f"all of it: a copy of the model could not be run and watched ({error!r})",))
    plan = make_plan(trace.calls, twin, bool(fuse))
    del trace
    return checked(plan, twin, before, args, kwargs, fuse) if plan.folds or plan.quick else plan


def checked(plan: Plan, twin: nn.Module, before: Outputs, args: Any, kwargs: Any, fuse: bool | str) -> Plan:
    """``plan`` less what gives other outputs on the same inputs, and how far off the prefix is with the rest.

    Args:
        twin: a copy of the model, which is run.
        before: what its frozen modules put out when they ran as written.
    """
    exact = is_plain_float32(twin)
    if not exact and fuse != "force":
        rule = f"{len(plan.folds)} norm layers: autocast or TF32 is on (FREEZE.FUSE: force folds there too)"
        plan = replace(plan, folds=(), plain=(*plan.plain, rule) if plan.folds else plan.plain)

    def run(kind: type[Fold]) -> tuple[FastForward, Outputs]:
        fast = FastForward(twin, fuse)
        fast.take(plan, kind)
        with torch.no_grad(), recorded((path, modules[path]) for path in before) as after, fast:
            twin(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        return fast, after

    modules = {path: module for path, module, _ in walk(twin)}
    trial, after = run(TrialFold)
    off = {pair[1]: getattr(fold, "off", 0.0) for pair, fold in zip(plan.folds, trial.folds, strict=True)}
    off |= {path: difference(before.get(path, ()), after.get(path, ())) for path in plan.quick}
    plan = plan.without({path: far for path, far in off.items() if far > (TOLERANCE if exact else LOOSE)})
    _, after = run(Fold)
    half_done = {layer for layer, _ in plan.folds}
    whole = [path for path in plan.prefix if path not in half_done]
    return replace(plan, difference=max(difference(before[path], after[path]) for path in whole))


def is_plain_float32(model: nn.Module) -> bool:
    """Whether ``model`` computes in float32 as it is written: no autocast, no TF32."""
    some = next((p for p in model.parameters() if p.is_floating_point()), None)
    if some is None:
        return True
    if some.dtype not in (torch.float32, torch.float64) or _autocast_is_on(some.device.type):
        return False
    if torch.get_float32_matmul_precision() != "highest":
        return False
    return some.device.type != "cuda" or not torch.backends.cudnn.allow_tf32


def _autocast_is_on(kind: str) -> bool:
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # torch before 2.4
        return torch.is_autocast_enabled() if kind == "cuda" else torch.is_autocast_cpu_enabled()
