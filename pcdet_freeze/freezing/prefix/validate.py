"""Make a plan for training forwards, and validate it on a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.entries.paths import unwrap, walk
from pcdet_freeze.freezing.layer_types import has_state
from pcdet_freeze.freezing.prefix.fast_forward import FastForward, can_fold_now
from pcdet_freeze.freezing.prefix.fold_bn import AllCompared, Fold, ValidationFold
from pcdet_freeze.freezing.prefix.no_grad_call import TF32, float32_rounding
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan, make_plan
from pcdet_freeze.freezing.prefix.tracer import Trace
from pcdet_freeze.freezing.state import is_fully_frozen
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.tensors import INFINITE, error_sums, relative_errors, tensors_of

TOLERANCE = 2e-6
"""limit of the relative error (L2) of a folded layer in float32, on the same input"""
LOOSE = 3e-2
"""the same with 16-bit arithmetic; a wrong result differs by more"""
TF32_TOLERANCE = 2 * TF32
"""the same with TF32, whose own rounding, 2**-11 of each factor, changes the plain result as well"""


Outputs = dict[str, list[Tensor]]
"""path -> the tensors that its calls return, in order"""


def plan_for(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    options: Options | None = None,
    shared: Sequence[object] = (),
) -> Plan:
    """Make the plan for training forwards of ``model`` with such arguments, in its present mode.

    A copy of the model runs two or three times on copies of the arguments, each time from the present state
    of the random generators, which is restored. The second of three runs ends with the last norm layer that
    it compares. Its SyncBatchNorms run in eval mode, without a collective.

    Args:
        shared: objects that the copy shares with the model, such as a data set.

    Raises:
        FreezeError: a reentrant checkpoint runs trainable parameters without a graph.
    """
    root, options, given = unwrap(model), options or Options(), (args, kwargs or {})
    if any("_orig_mod" in module._modules for module in root.modules()):
        return Plan(plain=("the whole prefix: a part of the model is compiled",))
    try:
        twin = copy_of(root, shared)
        _without_collectives(twin)
        frozen = {
            id(m): (path, m) for path, m, _ in walk(twin) if is_fully_frozen(m) or _is_quick(m, options)
        }
        with recorded(frozen.values()) as before, Trace(twin) as trace:
            _run(twin, given)
    except Exception as error:  # the forward itself may succeed, or raise a better error
        return Plan(plain=(f"the whole prefix: a copy of the model could not be traced ({error!r})",))
    plan = make_plan(trace.calls, twin, options)
    del trace
    try:
        return Validation(twin, before, given, options).judge(plan)
    except Exception as error:  # code that reads the memory of maps, a device without free memory
        first = (str(error).strip() or repr(error)).splitlines()[0]
        why = f"a copy of the model could not run by the plan ({type(error).__name__}: {first})"
        return Plan(plain=(f"the whole prefix: {why}",))


def _is_quick(module: nn.Module, options: Options) -> bool:
    """Whether ``module`` has no state, and a quick form."""
    return bool(options.fuse) and not has_state(module) and options.quick_form(module) is not None


def copy_of(root: nn.Module, shared: Sequence[object] = ()) -> nn.Module:
    """A deep copy of ``root``, without the graph of tensors that its modules keep from an earlier forward.

    Args:
        shared: objects that are not copied.
    """
    memo: dict[int, Any] = {id(value): value for value in shared}
    for module in root.modules():
        own = {key: value for key, value in vars(module).items() if key not in _STATE}
        memo.update({id(t): t.detach() for t in tensors_of(own) if t.grad_fn is not None})
    return copy.deepcopy(root, memo)


_STATE = ("_parameters", "_buffers", "_modules")


def _without_collectives(twin: nn.Module) -> None:
    """Where this rank's copy raises, other ranks would wait for it in the next SyncBatchNorm."""
    for module in twin.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()


def _run(model: nn.Module, given: Any) -> None:
    args, kwargs = copy.deepcopy(given)
    with untouched_rng():
        model(*args, **kwargs)


class Validation:
    """Runs a copy of the model by a plan, and compares its outputs with those of the run as written."""

    def __init__(self, twin: nn.Module, before: Outputs, given: Any, options: Options) -> None:
        self.twin, self.before, self.given, self.options = twin, before, given, options
        self.tops = [(path, module) for path, module, _ in walk(twin) if path in before]

    def judge(self, plan: Plan) -> Plan:
        """Return ``plan`` without what gives wrong outputs, and with the relative error of the prefix."""
        if plan.folds and not can_fold_now(self.twin, self.options):
            rule = "16-bit arithmetic (autocast) is on (FREEZE.FUSE: force folds there too)"
            plain = (*plan.plain, f"{len(plan.folds)} norm layers: {rule}")
            plan = replace(plan, folds=(), reached=(), plain=plain)
        plan = plan.without(self._misrecognised(plan))
        if plan.folds or plan.quick:
            plan = plan.without(self._too_far(plan))
        if plan.compiled:
            plan = self._try_compiling(plan)
        if plan.folds or plan.quick or plan.compiled or not self.options.only_fuses:
            fast, after = self._outputs(plan, self.options, Fold)
            # the output of a block whose error exceeds the tolerance is that of the whole block
            plan = plan.without(
                {path: block.error or 0.0 for path, block in fast.blocks.items() if block.is_off}
            )
            folded_layers = {layer for layer, _ in plan.folds}
            # a layer that is itself in the list of the prefix returns the norm's output when folded
            whole = [path for path in plan.prefix if path in self.before and path not in folded_layers]
            errors = output_errors(self.before, after, whole)
            own = float32_rounding(self.twin) if self.options.is_exact else None
            plan = replace(plan, difference=max(errors.values(), default=0.0), tf32=own == TF32)
        return plan

    @property
    def _limit(self) -> float:
        rounding = float32_rounding(self.twin)
        return LOOSE if rounding is None else TF32_TOLERANCE if rounding == TF32 else TOLERANCE

    def _misrecognised(self, plan: Plan) -> dict[str, float]:
        """path -> relative error, of quick forms that are wrong on inputs of their own choice."""
        modules = dict(self.tops)
        errors = {path: probe_error(self.options.quick_form(modules[path])) for path in plan.quick}
        return {path: error for path, error in errors.items() if not error <= self._limit}

    def _too_far(self, plan: Plan) -> dict[str, float]:
        """path -> relative error, of norm layers and quick forms whose error exceeds the tolerance."""
        fuse = "force" if self.options.fuse == "force" else True
        given = self.options
        options = Options(fuse, few_products=given.few_products, quick_form=given.quick_form)
        fast, after = self._outputs(replace(plan, compiled=()), options, ValidationFold)
        sums = {path: _sums_of(self.before.get(path, ()), after.get(path, ())) for path in plan.quick}
        if can_fold_now(self.twin, options):
            folds = [fold for fold in fast.folds if isinstance(fold, ValidationFold)]
            sums |= {norm: [fold.error] for (_, norm), fold in zip(plan.folds, folds, strict=True)}
        errors = _largest_errors(sums)
        return {path: error for path, error in errors.items() if not error <= self._limit}

    def _try_compiling(self, plan: Plan) -> Plan:
        try:
            self._outputs(plan, self.options, Fold)
        except Exception as error:  # a missing compiler shows in many kinds of errors
            first = (str(error).strip() or repr(error)).splitlines()[0]
            note = f"{', '.join(plan.compiled)}: torch.compile does not work here ({first})"
            return replace(plan, compiled=(), plain=(*plan.plain, note))
        return plan

    def _outputs(self, plan: Plan, options: Options, kind: type[Fold]) -> tuple[FastForward, Outputs]:
        fast = FastForward(self.twin, plan, options, kind)
        if not plan.quick:  # else the outputs of quick forms are compared, wherever they run
            _end_with_the_last(fast.folds)
        with torch.no_grad(), fast, recorded(self.tops) as after, suppress(AllCompared):
            _run(self.twin, self.given)
        return fast, after


def _end_with_the_last(folds: Sequence[Fold]) -> None:
    """Spare a run that only compares ``folds`` the rest of the model: each of them runs once."""
    waiting = set(folds)
    for fold in folds:
        if isinstance(fold, ValidationFold):
            fold.waiting = waiting


@contextmanager
def recorded(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Outputs]:
    """Record copies of the outputs of ``modules``, except of calls inside another one of them."""
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
                # a batch_dict also holds what earlier modules wrote
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


def probe_error(form: Any) -> float:
    """Relative error of a quick form on inputs of its own choice; 0 for one that has no ``probe_error``."""
    probe = getattr(form, "probe_error", None)
    return 0.0 if probe is None else float(probe())


def output_error(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest :func:`relative_error` of two lists of outputs; infinite where they do not match.

    Integers and booleans (indices, masks) must be equal: an index that is nearly right is wrong.
    """
    return output_errors({"": before}, {"": after}, [""])[""]


def output_errors(
    before: Mapping[str, Sequence[Tensor]], after: Mapping[str, Sequence[Tensor]], paths: Iterable[str]
) -> dict[str, float]:
    """path -> :func:`output_error` of its outputs. The host waits once for all of them."""
    return _largest_errors({path: _sums_of(before.get(path, ()), after.get(path, ())) for path in paths})


def _largest_errors(sums: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """path -> the largest of several relative errors, which are copied to the host together."""
    errors = iter(relative_errors([own for several in sums.values() for own in several]))
    return {path: max((next(errors) for _ in several), default=0.0) for path, several in sums.items()}


def _sums_of(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
    if len(before) != len(after):
        return [torch.tensor(INFINITE, dtype=torch.float64)]
    pairs = zip(before, after, strict=True)
    return [error_sums(a, b, exact=not (a.is_floating_point() or a.is_complex())) for a, b in pairs]
