"""The optimizer of a frozen model: OpenPCDet's wrapper, or whatever trains it."""

from __future__ import annotations

import gc
import logging
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.freezing.checks.optimizer_audit import check_groups
from pcdet_freeze.freezing.optimizer_and_ddp import optimizers, take_out


def inner(optimizer: Any) -> torch.optim.Optimizer | None:
    """The torch optimizer inside ``optimizer`` (OpenPCDet's OptimWrapper has it as ``.opt``), or None."""
    found = [candidate for candidate in optimizers(optimizer) if isinstance(candidate, torch.optim.Optimizer)]
    return found[-1] if found else None


def settle_groups(
    handle: FreezeHandle, optimizer: Any, logger: logging.Logger
) -> torch.optim.Optimizer | None:
    """Take what is frozen out of ``optimizer``, and put what OpenPCDet's wrapper dropped into it (P5).

    The wrapper collects the parameters of leaf modules, so those that a module with children owns itself
    (``MultiheadAttention.in_proj_weight``, tokens) are never trained. Of another optimizer, what is missing
    is an error.

    Raises FreezeError where a parameter that trains is in no group or in two.
    """
    take_out(optimizers(optimizer), handle.parameters())
    found = inner(optimizer)
    if found is None:
        return None
    if found is not optimizer:
        names = add_dropped(handle.model, found)
        if names:
            logger.warning(
                "pcdet_freeze: %s did not receive %d parameters that train, since their modules have "
                "children: %s. They are added; in OpenPCDet alone they stay as they were initialised.",
                type(optimizer).__name__,
                len(names),
                ", ".join(names),
            )
    check_groups(handle.model, found)
    return found


def add_dropped(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Append what trains and is in no group to the group of its kind; returns the names."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    for _, parameter in missing:
        group_for(model, optimizer, parameter)["params"].append(parameter)
    return [name for name, _ in missing]


def group_for(model: nn.Module, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """OpenPCDet's wrapper has two groups, [all else, BatchNorm]; any other optimizer's first one."""
    groups = optimizer.param_groups
    of_norm = any(
        parameter is own
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for own in module.parameters(recurse=False)
    )
    return groups[1] if of_norm and len(groups) == 2 else groups[0]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer | None:
    """The one optimizer in this process that holds parameters of ``model``; None where there is none or two.

    For training loops that say nothing to the plugin. Python's garbage collector is asked.
    """
    wanted = {id(parameter) for parameter in model.parameters()}
    found = [
        candidate
        for candidate in gc.get_objects()
        if issubclass(type(candidate), torch.optim.Optimizer)
        and type(candidate) is not StandIn
        and any(id(p) in wanted for group in candidate.param_groups for p in group["params"])
    ]
    return found[0] if len(found) == 1 else None


class StandIn(torch.optim.SGD):
    """An optimizer that nobody steps, over all of ``model`` that trains: for checks that want one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.0)
