"""The optimizer of a frozen model: OpenPCDet's OptimWrapper, or any other."""

from __future__ import annotations

import gc
import logging
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.freezing.checks.optimizer_audit import check_groups
from pcdet_freeze.freezing.optimizer_and_ddp import optimizers, take_out


def inner_optimizer(optimizer: Any) -> Optimizer | None:
    """The torch optimizer inside ``optimizer`` (``.opt`` of OpenPCDet's OptimWrapper), or None."""
    found = [candidate for candidate in optimizers(optimizer) if isinstance(candidate, Optimizer)]
    return found[-1] if found else None


def fix_groups(handle: FreezeHandle, optimizer: Any, logger: logging.Logger) -> Optimizer | None:
    """Remove frozen parameters from the param groups, and add those that OptimWrapper dropped (P5).

    OptimWrapper collects the parameters of leaf modules only, so parameters of a module with children
    (``MultiheadAttention.in_proj_weight``, tokens) are never trained. A parameter that another optimizer
    lacks is an error.

    Returns the torch optimizer, or None if there is none in ``optimizer``.

    Raises FreezeError if a trainable parameter is in no group or in two.
    """
    take_out(optimizers(optimizer), handle.parameters())
    found = inner_optimizer(optimizer)
    if found is None:
        return None
    if found is not optimizer:
        names = add_dropped(handle.model, found)
        if names:
            logger.warning(
                "pcdet_freeze: %s did not receive %d trainable parameters, because their modules have "
                "children: %s. They are added; OpenPCDet alone would never train them.",
                type(optimizer).__name__,
                len(names),
                ", ".join(names),
            )
    check_groups(handle.model, found)
    return found


def add_dropped(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Append trainable parameters that are in no group to the group of their kind; returns the names."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    for _, parameter in missing:
        group_for(model, optimizer, parameter)["params"].append(parameter)
    return [name for name, _ in missing]


def group_for(model: nn.Module, optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The group for ``parameter``: OptimWrapper has two, [others, BatchNorm]; else the first group."""
    groups = optimizer.param_groups
    of_norm = any(
        parameter is own
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for own in module.parameters(recurse=False)
    )
    return groups[1] if of_norm and len(groups) == 2 else groups[0]


def find_optimizer(model: nn.Module) -> Optimizer | None:
    """The optimizer in this process with parameters of ``model``; None if there is none or more than one.

    For training loops that do not pass their optimizer to the plugin: there is no reference to it, so all
    objects of Python's garbage collector are searched.
    """
    wanted = {id(parameter) for parameter in model.parameters()}
    found = [
        candidate
        for candidate in gc.get_objects()
        if issubclass(type(candidate), Optimizer)
        and any(id(p) in wanted for group in candidate.param_groups for p in group["params"])
    ]
    return found[0] if len(found) == 1 else None
