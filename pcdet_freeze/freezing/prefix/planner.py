"""Plan from a traced forward: the calls of the frozen prefix (F1), and what can be folded or fused (F5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.prefix.empty_space import chain_of
from pcdet_freeze.freezing.prefix.fold_bn import is_foldable_norm, out_axis, out_channels, own_padding
from pcdet_freeze.freezing.prefix.no_grad_call import TF32
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.siblings import common_shape
from pcdet_freeze.freezing.prefix.tracer import Call, trains
from pcdet_freeze.freezing.state import is_fully_frozen
from pcdet_freeze.utils.foreign_code import has_hooks, has_hooks_inside

VALID_POINTS = "on its valid points only"
"""what a quick form does that does not say it (``does``)"""


@dataclass(frozen=True)
class Plan:
    """Which modules, by path, run otherwise than written."""

    prefix: tuple[str, ...] = ()
    """outermost frozen modules that depend on nothing trainable, in call order; they run under no_grad"""
    folds: tuple[tuple[str, str], ...] = ()
    """(layer, the BatchNorm that is folded into it)"""
    relus: tuple[tuple[str, str], ...] = ()
    """(folded BatchNorm, the ReLU that alone reads its output, and overwrites it)"""
    pads: tuple[tuple[str, str], ...] = ()
    """(folded Conv2d, the ZeroPad2d before it, which the convolution pads by itself)"""
    siblings: tuple[tuple[str, ...], ...] = ()
    """trainable convolutions that read the same map, computed as one"""
    reached: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(block, its convolutions): blocks that run only on the cells that a pillar can reach"""
    quick: tuple[str, ...] = ()
    """modules of the prefix, and modules without state between them, that run their quick form, see
    :class:`Options`"""
    quick_notes: tuple[tuple[str, str], ...] = ()
    """(module with a quick form, what it does, for the log)"""
    compiled: tuple[str, ...] = ()
    """modules of the prefix to compile"""
    plain: tuple[str, ...] = ()
    """parts of the prefix that run as written, each with the reason"""
    difference: float | None = None
    """largest relative error (L2) of the prefix's outputs, against the run as written"""

    tf32: bool = False
    """whether the error is that of TF32"""

    def lines(self) -> list[str]:
        """Messages for the log."""
        if self.prefix:
            lines = [f"Frozen prefix (under no_grad): {', '.join(self.prefix)}."]
        else:
            lines = ["No frozen prefix: every frozen module depends on a trainable one."]
        fast = [f"{len(self.folds)} norm layers folded into the layers before them"] if self.folds else []
        notes = dict(self.quick_notes)
        fast += [f"{path} {notes.get(path, VALID_POINTS)}" for path in self.quick]
        blocks = ", ".join(path for path, _ in self.reached)
        fast += [f"{blocks} on the cells that a pillar can reach"] if blocks else []
        fast += [f"{', '.join(group)} fused into one convolution" for group in self.siblings]
        fast += [f"{', '.join(self.compiled)} compiled"] if self.compiled else []
        if fast:
            lines.append(f"Frozen prefix, optimized: {'; '.join(fast)}.")
        if self.difference is not None:
            times = f", {self.difference / TF32:.1f} times the rounding of TF32" if self.tf32 else ""
            lines.append(f"Frozen prefix: maximum relative error {self.difference:.1e} (L2){times}.")
        return lines + [f"  runs as written: {line}" for line in self.plain]

    def without(self, too_far: Mapping[str, float]) -> Plan:
        """Return the plan without the norm layers and quick forms in ``too_far`` (path -> relative error)."""
        return replace(
            self,
            folds=tuple(pair for pair in self.folds if pair[1] not in too_far),
            reached=_still_whole(self, too_far),
            quick=tuple(path for path in self.quick if path not in too_far),
            plain=(
                *self.plain,
                *(f"{path}: its relative error would be {off:.1e}" for path, off in too_far.items()),
            ),
        )


def make_plan(calls: Sequence[Call], model: nn.Module, options: Options) -> Plan:
    """Make the plan for a model whose forward made ``calls``.

    Raises:
        FreezeError: a reentrant checkpoint runs trainable parameters without a graph.
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
    if not tops or not options.fuse:
        return Plan(prefix, compiled=_compilable(inside) if options.compile else ())
    between = [call for call in calls if _is_between(call, tops)]
    quick = [c for c in (*tops, *between) if not has_hooks_inside(c.module) and options.quick_form(c.module)]
    as_called = [call for call in inside if not call.inside(quick)]
    times = Counter(id(call.module) for call in calls)
    folds, plain = _folds(inside, times, tensor_owners(model))
    once = [call for call in inside if times[id(call.module)] == 1 and call not in tops]
    relus = _relus(once, {norm for _, norm in folds})
    pads = _pads(once, {layer for layer, _ in folds})
    single = [call for call in inside if times[id(call.module)] == 1 and call.one_tensor]
    chains = {
        call.path: chain_of(call.path, call.module, dict(folds), dict(pads), dict(relus)) for call in single
    }
    return Plan(
        prefix,
        folds=folds,
        relus=relus,
        pads=pads,
        reached=tuple((path, chain) for path, chain in chains.items() if chain and options.may_skip),
        siblings=_siblings(calls),
        quick=tuple(dict.fromkeys(call.path for call in quick)),
        quick_notes=tuple((call.path, _does(options.quick_form(call.module))) for call in quick),
        compiled=_compilable(as_called) if options.compile else (),
        plain=plain,
    )


def _does(form: object) -> str:
    """What a quick form does, for the log."""
    return str(getattr(form, "does", VALID_POINTS))


def _is_between(call: Call, tops: Collection[Call]) -> bool:
    """Whether ``call`` is of a module without state that depends on nothing trainable (a scatter)."""
    outside = call.above is not None and not call.inside(tops)
    return outside and not call.reads_live and not layer_types.has_state(call.module)


def _still_whole(plan: Plan, too_far: Collection[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Blocks of ``plan.reached`` that are not in ``too_far`` and whose layers stay folded."""
    unfolded = {layer for layer, norm in plan.folds if norm in too_far}
    return tuple(
        (path, chain) for path, chain in plan.reached if path not in too_far and not unfolded & {*chain}
    )


def refuse_cut_off(calls: Sequence[Call]) -> None:
    """Raise FreezeError that names the trainable modules in a reentrant checkpoint without a graph."""
    lost = [call.path for call in calls if call.cut_off and trains(call.module)]
    if lost:
        raise FreezeError(
            "torch.utils.checkpoint with use_reentrant=True computes gradients only if an input requires "
            f"grad, but all modules before it are frozen: {', '.join(dict.fromkeys(lost))} would get no "
            "gradient. Call checkpoint with use_reentrant=False."
        )


def tensor_owners(model: nn.Module) -> Counter[int]:
    """id of each parameter and buffer -> number of modules of ``model`` that own it."""
    return Counter(
        id(tensor)
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )


def _compilable(inside: Sequence[Call]) -> tuple[str, ...]:
    """Outermost modules of the prefix that map one tensor to one tensor, without hooks inside."""
    hooked = {call for call in inside if has_hooks(call.module)}
    fit: dict[Call, None] = {}
    for call in inside:
        if call.one_tensor and call.module._modules and not call.inside(fit):
            fit[call] = None
    return tuple(dict.fromkeys(c.path for c in fit if not any(one.inside({c}) for one in hooked)))


def _relus(calls: Sequence[Call], folded: Collection[str]) -> tuple[tuple[str, str], ...]:
    """(folded norm, ReLU that may overwrite its output)."""
    pairs = ((call.source, call) for call in calls if call.source is not None)
    return tuple(
        (norm.path, relu.path)
        for norm, relu in pairs
        if norm.path in folded and type(relu.module) is nn.ReLU and _is_private(norm, relu)
        if norm in calls and not has_hooks(relu.module)
    )


def _pads(calls: Sequence[Call], folded: Collection[str]) -> tuple[tuple[str, str], ...]:
    """(folded convolution, padding layer that the convolution can replace)."""
    pairs = ((call.source, call) for call in calls if call.source is not None)
    return tuple(
        (layer.path, pad.path)
        for pad, layer in pairs
        if layer.path in folded and own_padding(pad.module, layer.module) and _is_private(pad, layer)
        if pad in calls and not has_hooks(pad.module)
    )


def _is_private(writer: Call, reader: Call) -> bool:
    """Whether the output of ``writer`` is read by ``reader`` alone, and seen by no hook of another module."""
    return writer.users == {reader} and not writer.kept and writer.above is reader.above


def _folds(
    calls: Sequence[Call], times: Counter[int], owners: Counter[int]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """(pairs to fold, norm layers that are not folded with the reason)."""
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
    """Why ``norm`` cannot be folded into the layer before it; empty if it can."""
    layer = norm.source
    if not is_foldable_norm(norm.module):
        return f"{type(norm.module).__name__} is not a BatchNorm of torch with running statistics"
    if layer is None or out_axis(layer.module) is None:
        return "it does not read the output of a convolution or linear layer"
    if not is_fully_frozen(layer.module) or layer.reads_live:
        return f"{layer.path} is not in the prefix"
    if out_channels(layer.module) != norm.module.num_features:
        return f"its number of channels is not that of {layer.path}"
    for call in (norm, layer):
        if times[id(call.module)] > 1:
            return f"{call.path} is called {times[id(call.module)]} times a step"
        if has_hooks(call.module):
            return f"{call.path} has hooks"
        if any(owners[id(tensor)] > 1 for tensor in _tensors(call.module)):
            return f"{call.path} shares a tensor with another module"
    if layer.users != {norm} or layer.kept:
        return f"the output of {layer.path} has other users"
    return ""


def _tensors(module: nn.Module) -> list[object]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _siblings(calls: Sequence[Call]) -> tuple[tuple[str, ...], ...]:
    """Groups of trainable convolutions of one shape that were called once, with the same tensor.

    A layer that runs without a graph, or again in the backward pass (checkpoint), is in no group.
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
