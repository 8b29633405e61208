"""Map the state of an optimizer by parameter name.

The state itself says only "parameter 17 of group 0". Our checkpoints store the names with it. For a
checkpoint of OpenPCDet the names are derived from the order of its parameters, and every shape is checked.
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
    """Parameters whose state was kept, dropped or is new, by name."""

    kept: tuple[str, ...] = ()
    """in the checkpoint, and trainable now"""
    dropped: tuple[str, ...] = ()
    """in the checkpoint, but not trainable now"""
    new: tuple[str, ...] = ()
    """trainable now, but not in the checkpoint: starts without state"""

    @property
    def is_whole(self) -> bool:
        """Whether exactly the same parameters are trainable."""
        return not self.dropped and not self.new

    def table(self) -> str:
        """Return one line a kind: the count and the first names."""
        rows = (("kept", self.kept), ("dropped", self.dropped), ("new", self.new))
        return "\n".join(f"  {kind:<8} {len(names):>5}  {_some(names)}".rstrip() for kind, names in rows)


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """Return the optimizer's kind for a checkpoint: a state of one kind does not fit another."""
    return type(optimizer).__name__


def load_optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    names: Names | None = None,
    kind: str | None = None,
) -> StateMap:
    """Load the state of each trainable parameter from ``state``, by name; others start without state.

    Args:
        names: stored names per group; None for a checkpoint of OpenPCDet.
        kind: stored ``kind_of``; None where it was not stored.

    Raises:
        CheckpointError: nothing is loaded: the state is of another kind of optimizer or another model, or no
            names are stored and the order cannot be derived.
    """
    fault = _other_kind(optimizer, state, kind)
    if not fault and names is None:
        names, fault = original_names(model, optimizer, state)
    fault = fault or _misfit(model, state, names or [])
    if fault or names is None:
        raise CheckpointError(
            f"The optimizer state of a checkpoint must match the parameters that it was written for, but "
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
    """Copy the state of every parameter that is in both from ``old`` to ``new``; others start without state.

    Returns:
        (number of parameters that are in ``old``, number of those that are not)
    """
    parameters = [parameter for group in new.param_groups for parameter in group["params"]]
    known = {id(parameter) for group in old.param_groups for parameter in group["params"]}
    for parameter in parameters:
        if parameter in old.state:
            new.state[parameter] = old.state[parameter]
    return sum(id(parameter) in known for parameter in parameters), sum(
        id(p) not in known for p in parameters
    )


def _load_whole(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load ``state`` with its options, except ``lr_scale``, which is the config's, and ``fused``, which
    depends on the device."""
    scales = [group.get("lr_scale") for group in optimizer.param_groups]
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    groups = [{**then, **{key: now[key] for key in ("fused",) if key in now}} for then, now in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, scale in zip(optimizer.param_groups, scales, strict=True):
        group.pop("lr_scale", None)
        if scale is not None:
            group["lr_scale"] = scale


def original_names(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> tuple[Names | None, str]:
    """Return the names per group of a state without names, or None and the reason.

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
    """Return why ``state`` is of another kind of optimizer (Adam has betas, SGD a momentum), or ''."""
    if kind is not None and kind != kind_of(optimizer):
        return f"its optimizer is {kind} where OPTIMIZATION.OPTIMIZER needs {kind_of(optimizer)}"
    kinds = [
        {"betas", "momentum"} & set(groups[0]) for groups in (state["param_groups"], optimizer.param_groups)
    ]
    then, now = (" and ".join(sorted(kind)) or "neither betas nor momentum" for kind in kinds)
    return "" if then == now else f"it is of an optimizer with {then} where this one has {now}"


def _misfit(model: nn.Module, state: Mapping[str, Any], names: Names) -> str:
    """Return why ``state`` cannot be of the parameters ``names``, or ''."""
    sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes != [len(group) for group in names]:
        return f"it has groups of {sizes} parameters and names for {[len(group) for group in names]}"
    shapes = {name: tuple(p.shape) for name, p in unwrap(model).named_parameters(remove_duplicate=False)}
    unknown = [name for name in _flat(names) if name not in shapes]
    if unknown:
        return f"it has parameters that are not in this model: {_some(unknown)}"
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
