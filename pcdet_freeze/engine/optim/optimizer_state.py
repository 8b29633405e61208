"""The state of an optimizer by parameter name: stored with names, mapped by name, never lost in silence.

A state says only "parameter 17 of group 0". Our checkpoints store the names beside it; for one of OpenPCDet's
they are worked out from the one order that it can have, and every shape is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pcdet_freeze.engine.optim.optimizer import DecoupledAdam, parameter_names, split_by_norm
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.utils.distributed import unwrap

Names = list[list[str]]


@dataclass(frozen=True)
class StateMap:
    """What became of the state of each parameter, by name."""

    kept: tuple[str, ...] = ()
    """in the checkpoint, and trains now"""
    dropped: tuple[str, ...] = ()
    """in the checkpoint, but does not train now"""
    new: tuple[str, ...] = ()
    """trains now, but is not in the checkpoint: starts with a fresh state"""

    @property
    def is_whole(self) -> bool:
        """Whether exactly the same parameters train."""
        return not self.dropped and not self.new

    def table(self) -> str:
        """One line a kind: how many, and the first names."""
        rows = (("kept", self.kept), ("dropped", self.dropped), ("new", self.new))
        return "\n".join(f"  {kind:<8} {len(names):>5}  {_some(names)}".rstrip() for kind, names in rows)


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """What a checkpoint says of its optimizer: a state of one kind means nothing to another."""
    return type(optimizer).__name__


def load_optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    names: Names | None = None,
    kind: str | None = None,
) -> StateMap:
    """Give each parameter that trains now its state in ``state``, by name; the others start fresh.

    Args:
        names: stored names per group; None for a checkpoint of OpenPCDet.
        kind: stored ``kind_of``; None where it was not stored.

    Raises:
        CheckpointError: before anything is loaded, where the state is of another kind of optimizer, where it
            is not of this model, or where no names are stored and the order cannot be worked out.
    """
    fault = _other_kind(optimizer, state, kind)
    if not fault and names is None:
        names, fault = original_names(model, optimizer, state)
    fault = fault or _misfit(model, state, names or [])
    if fault or names is None:
        raise CheckpointError(
            f"The optimizer state of a checkpoint must go to the parameters that it was written for, but "
            f"{fault}. To start a new stage from its weights use --pretrained_model."
        )
    here = parameter_names(model, optimizer)
    now, then = _flat(here), _flat(names)
    if here == names:
        _load_whole(optimizer, state)
    else:
        by_name = {name: state["state"].get(index) for name, index in zip(then, _indices(state), strict=True)}
        found = {place: entry for place, name in enumerate(now) if (entry := by_name.get(name)) is not None}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": found})
    before, after = set(then), set(now)
    return StateMap(
        tuple(name for name in now if name in before),
        tuple(name for name in then if name not in after),
        tuple(name for name in now if name not in before),
    )


def carry_state(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> tuple[int, int]:
    """Hand the state of every parameter that both hold from ``old`` to ``new``; the others start fresh.

    Returns:
        (parameters that ``old`` held, parameters that start fresh)
    """
    held = [parameter for group in new.param_groups for parameter in group["params"]]
    known = {id(parameter) for group in old.param_groups for parameter in group["params"]}
    for parameter in held:
        if parameter in old.state:
            new.state[parameter] = old.state[parameter]
    return sum(id(parameter) in known for parameter in held), sum(id(p) not in known for p in held)


def _load_whole(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """All of ``state`` with its options; a learning-rate scale is the config's, though."""
    scales = [group.get("lr_scale") for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        group.pop("lr_scale", None)
        if scale is not None:
            group["lr_scale"] = scale


def original_names(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> tuple[Names | None, str]:
    """Names per group of a state without names, and why there are none.

    OpenPCDet trains every parameter: with adam_onecycle in two groups, [all but BatchNorm, BatchNorm], from
    the leaf modules alone in module order; with adam and sgd in one group. A state of other sizes or shapes
    was written for other parameters.
    """
    sizes = [len(group["params"]) for group in state["param_groups"]]
    candidates = _original_orders(unwrap(model), isinstance(optimizer, DecoupledAdam))
    fits = [names for names in candidates if [len(group) for group in names] == sizes]
    if not fits:
        wanted = " or ".join(str([len(group) for group in names]) for names in candidates)
        return None, (
            f"it stores no parameter names, and its groups hold {sizes} parameters where OpenPCDet's order "
            f"of this model has {wanted}"
        )
    faults = [_misfit(model, state, names) for names in fits]
    if all(faults):
        return None, f"it stores no parameter names, and in OpenPCDet's order {faults[0]}"
    return fits[faults.index("")], ""


def _original_orders(model: nn.Module, by_norm: bool) -> list[Names]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if not by_norm:
        return [[[names[id(parameter)] for parameter in model.parameters()]]]
    orders = (split_by_norm(model, everything=True), split_by_norm(model, everything=True, leaves_only=True))
    found = [[[names[id(parameter)] for parameter in group] for group in order] for order in orders]
    return found[:1] if found[0] == found[1] else found


def _other_kind(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], kind: str | None) -> str:
    """Adam has betas, SGD a momentum: a state of one kind would start the other anew, in silence."""
    if kind is not None and kind != kind_of(optimizer):
        return (
            f"it is of an optimizer of kind {kind} where OPTIMIZATION.OPTIMIZER asks for {kind_of(optimizer)}"
        )
    kinds = [
        {"betas", "momentum"} & set(groups[0]) for groups in (state["param_groups"], optimizer.param_groups)
    ]
    then, now = (" and ".join(sorted(kind)) or "neither betas nor momentum" for kind in kinds)
    return "" if then == now else f"it is of an optimizer with {then} where this one has {now}"


def _misfit(model: nn.Module, state: Mapping[str, Any], names: Names) -> str:
    """Why ``state`` cannot be of the parameters ``names``; empty where it can."""
    sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes != [len(group) for group in names]:
        return f"it has groups of {sizes} parameters and names for {[len(group) for group in names]}"
    shapes = {name: tuple(p.shape) for name, p in unwrap(model).named_parameters(remove_duplicate=False)}
    unknown = [name for name in _flat(names) if name not in shapes]
    if unknown:
        return f"it is of parameters that this model has not: {_some(unknown)}"
    for index, name in zip(_indices(state), _flat(names), strict=True):
        for key, value in state["state"].get(index, {}).items():
            if torch.is_tensor(value) and value.dim() and tuple(value.shape) != shapes[name]:
                return (
                    f"{key} of {name} has shape {tuple(value.shape)} where the parameter has {shapes[name]}"
                )
    return ""


def _indices(state: Mapping[str, Any]) -> list[Any]:
    return _flat(group["params"] for group in state["param_groups"])


def _flat(groups: Iterable[Iterable[Any]]) -> list[Any]:
    return [item for group in groups for item in group]


def _some(names: Iterable[str], limit: int = 4) -> str:
    known = list(names)
    return ", ".join(known[:limit]) + (f" and {len(known) - limit} more" if len(known) > limit else "")
