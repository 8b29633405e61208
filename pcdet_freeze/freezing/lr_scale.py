"""FREEZE.LR_SCALE for one model: the parameters that train with another learning rate from the start."""

from __future__ import annotations

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.entries.paths import is_within, match, unwrap, walk
from pcdet_freeze.freezing.entries.resolve import no_such_module
from pcdet_freeze.freezing.plan import BLOCK, FreezePlan
from pcdet_freeze.freezing.schedule import AddedParameters

KEY = f"MODEL.{BLOCK}.LR_SCALE"


def scaled_parameters(plan: FreezePlan, model: nn.Module) -> dict[str, AddedParameters]:
    """Name in LR_SCALE -> the parameters that train now with its multiple of the learning rate.

    Of two names that overlap, the longer path counts. Nothing is changed.

    Raises:
        FreezeError: every name that is not a module of ``model``.
    """
    root = unwrap(model)
    found, faults = {}, []
    known = [path for path, _, _ in walk(root) if path] if plan.lr_scale else []
    for name in plan.lr_scale or {}:
        found[name] = match(root, name)
        if not found[name].paths:
            faults.append(f"{KEY}: {no_such_module(name, found[name], known)}")
    if faults:
        raise FreezeError("\n".join(faults))
    owner: dict[str, str] = {}
    places = sorted(((path, name) for name, at in found.items() for path in at.paths), key=_depth)
    for path, name in places:
        names = (key for key, parameter in root.named_parameters() if parameter.requires_grad)
        owner |= {key: name for key in names if is_within(key, path)}
    return {
        name: AddedParameters(tuple(key for key, own in owner.items() if own == name), scale)
        for name, scale in (plan.lr_scale or {}).items()
    }


def _depth(place: tuple[str, str]) -> int:
    return place[0].count(".")


def lr_scaled_groups(plan: FreezePlan, model: nn.Module) -> list[tuple[tuple[str, ...], float]]:
    """(names of parameters, multiple of the learning rate) for param groups of their own."""
    parts = scaled_parameters(plan, model).values()
    return [(part.names, part.lr_scale) for part in parts if part.names and part.lr_scale != 1]


def describe_lr_scale(plan: FreezePlan, model: nn.Module) -> list[str]:
    """A line for the log about each name."""
    return [
        f"learning rate x {part.lr_scale:g}: {name} ({len(part.names)} trainable parameter tensors)"
        for name, part in scaled_parameters(plan, model).items()
    ]
