"""What a recorded forward allows: which calls are the frozen prefix (F1), what in it can be folded (F5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.prefix.fold_bn import is_foldable_norm, out_axis, out_channels
from pcdet_freeze.freezing.prefix.siblings import common_shape
from pcdet_freeze.freezing.prefix.tracer import Call, trains
from pcdet_freeze.freezing.state import is_fully_frozen

QUICK_FORM = "forward_frozen"
"""A module's own method for its training forward in the prefix: the same outputs but for rounding, sooner."""


@dataclass(frozen=True)
class Plan:
    """What runs otherwise than it is written, by path."""

    prefix: tuple[str, ...] = ()
    """outermost frozen modules that read nothing live, in the order of their calls: no graph"""
    folds: tuple[tuple[str, str], ...] = ()
    """(layer, norm layer behind it)"""
    siblings: tuple[tuple[str, ...], ...] = ()
    """layers that read the same map"""
    quick: tuple[str, ...] = ()
    """modules of the prefix with a quick form"""
    compiled: tuple[str, ...] = ()
    """modules of the prefix to compile"""
    plain: tuple[str, ...] = ()
    """what of the prefix runs as it is written, each with the reason"""
    difference: float | None = None
    """largest relative difference (L2) of the prefix's outputs from those of the run as written"""

    def lines(self) -> list[str]:
        """For the log."""
        told = ["No frozen module runs before the first trainable one: all runs as written."]
        if self.prefix:
            told = [f"The frozen prefix, without a graph: {', '.join(self.prefix)}."]
        what = [f"{len(self.folds)} norm layers folded into the layer before them"] if self.folds else []
        what += [f"{path} on its valid points only" for path in self.quick]
        what += [f"{', '.join(group)} as one" for group in self.siblings]
        what += [f"{', '.join(self.compiled)} compiled"] if self.compiled else []
        if what:
            told.append(f"Computed in fewer operations: {'; '.join(what)}.")
        if self.difference is not None:
            told.append(
                f"What the prefix puts out differs by {self.difference:.1e} from before (relative L2)."
            )
        return told + [f"  runs plain: {line}" for line in self.plain]

    def without(self, too_far: Mapping[str, float]) -> Plan:
        """This plan less the norm layers and quick forms in ``too_far``, which gives their differences."""
        return replace(
            self,
            folds=tuple(pair for pair in self.folds if pair[1] not in too_far),
            quick=tuple(path for path in self.quick if path not in too_far),
            plain=(*self.plain, *(f"{path}: it would differ by {off:.1e}" for path, off in too_far.items())),
        )


def make_plan(calls: Sequence[Call], model: nn.Module, fuse: bool = True, compiled: bool = False) -> Plan:
    """Work out the plan for a model whose forward made ``calls``.

    Raises FreezeError where a reentrant checkpoint cuts something that trains off from its gradient.
    """
    refuse_cut_off(calls)
    tops: dict[Call, None] = {}
    for call in calls:
        if (
            call.above is not None
            and is_fully_frozen(call.module)
            and not call.reads_live
            and not call.inside(tops)
        ):
            tops[call] = None
    prefix = tuple(dict.fromkeys(call.path for call in tops))
    inside = [call for call in calls if call.inside(tops)]
    plan = Plan(prefix, compiled=_compilable(inside, tops) if compiled else ())
    if not fuse or not tops:
        return plan
    quick = [c.path for c in tops if hasattr(c.module, QUICK_FORM) and not has_hooks_inside(c.module)]
    folds, plain = _folds(inside, Counter(id(call.module) for call in calls), tensor_owners(model))
    quick_once = tuple(dict.fromkeys(quick))
    return replace(plan, folds=folds, siblings=_siblings(calls), quick=quick_once, plain=plain)


def refuse_cut_off(calls: Sequence[Call]) -> None:
    """Raise FreezeError, with all names, where what trains runs in a reentrant checkpoint without a graph."""
    lost = [call.path for call in calls if call.cut_off and trains(call.module)]
    if lost:
        raise FreezeError(
            "torch.utils.checkpoint with use_reentrant=True gives gradients only where an input requires "
            f"one, but all before it is frozen: {', '.join(dict.fromkeys(lost))} would never learn. Call "
            "checkpoint with use_reentrant=False."
        )


def has_hooks(module: nn.Module) -> bool:
    """Whether anything but the module's own forward takes part in a call of it."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(map(bool, hooks)) or "forward" in module.__dict__


def has_hooks_inside(module: nn.Module) -> bool:
    """:func:`has_hooks` of ``module`` or any module in it."""
    return any(map(has_hooks, module.modules()))


def tensor_owners(model: nn.Module) -> Counter[int]:
    """How many modules of ``model`` own each parameter and buffer, by the tensor's id."""
    return Counter(
        id(tensor)
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )


def _compilable(inside: Sequence[Call], tops: Collection[Call]) -> tuple[str, ...]:
    """Modules of the prefix that take one tensor and give one, without hooks in them."""
    hooked = {call for call in inside if has_hooks(call.module)}
    fit = [call for call in tops if call.one_tensor and call.module._modules]
    return tuple(dict.fromkeys(c.path for c in fit if not any(one.inside({c}) for one in hooked)))


def _folds(
    calls: Sequence[Call], times: Counter[int], owners: Counter[int]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """(pairs to fold, norm layers that stay as they are with the reason)."""
    folds, plain = [], []
    for call in calls:
        if not layer_types.is_norm(call.module):
            continue
        obstacle = _obstacle(call, times, owners)
        if obstacle:
            plain.append(f"{call.path}: {obstacle}")
        else:
            assert call.source is not None
            folds.append((call.source.path, call.path))
    return tuple(folds), tuple(dict.fromkeys(plain))


def _obstacle(norm: Call, times: Counter[int], owners: Counter[int]) -> str:
    """Why ``norm`` cannot be folded into what it reads, or an empty string."""
    layer = norm.source
    if not is_foldable_norm(norm.module):
        return f"{type(norm.module).__name__} is none of torch's BatchNorms with running statistics"
    if layer is None or out_axis(layer.module) is None:
        return "it does not read the output of a convolution or linear layer"
    if not is_fully_frozen(layer.module) or layer.reads_live:
        return f"{layer.path} is not in the prefix"
    if out_channels(layer.module) != norm.module.num_features:
        return f"its channels are not those of {layer.path}"
    for call in (norm, layer):
        if times[id(call.module)] > 1:
            return f"{call.path} is called {times[id(call.module)]} times a step"
        if has_hooks(call.module):
            return f"{call.path} has hooks"
        if any(owners[id(tensor)] > 1 for tensor in _tensors(call.module)):
            return f"{call.path} shares a tensor with another module"
    if layer.users != {norm} or layer.kept:
        return f"others use the output of {layer.path} too"
    return ""


def _tensors(module: nn.Module) -> list[object]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _siblings(calls: Sequence[Call]) -> tuple[tuple[str, ...], ...]:
    """Groups of trainable layers of one shape that were given the very same tensor, each called once.

    A layer that runs without a graph, or is run again in the backward pass, is left alone.
    """
    times = Counter(id(call.module) for call in calls)
    groups: dict[tuple[object, ...], list[str]] = {}
    for call in calls:
        shape = common_shape(call.module)
        if shape is None or call.given is None or times[id(call.module)] > 1 or has_hooks(call.module):
            continue
        if call.autocast is not None:
            groups.setdefault((id(call.given), call.autocast, *shape), []).append(call.path)
    return tuple(tuple(paths) for paths in groups.values() if len(paths) > 1)
