"""The optimizer of a frozen model: OpenPCDet's OptimWrapper, or any other."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
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


class DroppedParameters:
    """Trainable parameters that OpenPCDet's OptimWrapper leaves out of the optimizer.

    It collects the parameters of leaf modules only, so parameters of a module with children
    (``MultiheadAttention.in_proj_weight``, tokens) are never trained, frozen run or not. They stay out of it,
    so that a frozen run trains no more than a run without a list, unless FREEZE.TRAIN_DROPPED adds them.

    Args:
        model: without wrappers.
        train: FREEZE.TRAIN_DROPPED.
    """

    def __init__(self, model: nn.Module, train: bool, logger: logging.Logger) -> None:
        self.model, self.train, self.logger = model, train, logger
        self.names: set[str] = set()
        """parameters that stay out of the optimizer"""
        self._wraps = False

    def find(self, optimizer: Any, inner: Optimizer) -> None:
        """Find them in a new ``optimizer``, and log their names once.

        Args:
            inner: the torch optimizer inside it. Where that is ``optimizer`` itself, none counts as dropped.
        """
        self._wraps = self._wraps or inner is not optimizer
        if inner is optimizer:
            return
        known = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
        missing = {n: p for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in known}
        self._report([name for name in missing if name not in self.names], type(optimizer).__name__)
        if self.train:
            for parameter in missing.values():
                group_for(self.model, inner, parameter)["params"].append(parameter)

    def to_train(self, names: Sequence[str]) -> list[str]:
        """Those of the parameters ``names``, which a schedule unfreezes, that the optimizer gets."""
        if not self._wraps:
            return list(names)
        collected = {
            id(parameter)
            for module in self.model.modules()
            if not any(True for _ in module.children())
            for parameter in module.parameters()
        }
        parameters = dict(self.model.named_parameters())
        left_out = [name for name in names if id(parameters[name]) not in collected]
        self._report(left_out, "OptimWrapper")
        return [name for name in names if self.train or name not in left_out]

    def _report(self, names: Sequence[str], wrapper: str) -> None:
        """Log ``names``, which ``wrapper`` does not collect, and what becomes of them."""
        if not names:
            return
        if not self.train:
            self.names.update(names)
        level, consequence = (logging.INFO, _ADDED) if self.train else (logging.WARNING, _LEFT_OUT)
        self.logger.log(level, _DROPPED + consequence, wrapper, len(names), ", ".join(names))


_DROPPED = (
    "pcdet_freeze: %s does not collect %d trainable parameters (adam_onecycle drops those of modules with "
    "children): %s. "
)
_ADDED = "They are added to the optimizer (FREEZE.TRAIN_DROPPED)."
_LEFT_OUT = (
    "They keep their values, as in OpenPCDet without a list. To train them, set FREEZE.TRAIN_DROPPED: True."
)


def fix_groups(handle: FreezeHandle, optimizer: Any, dropped: DroppedParameters) -> Optimizer | None:
    """Remove frozen parameters from the param groups, and find those that OptimWrapper dropped (P5).

    Returns the torch optimizer, or None if there is none in ``optimizer``.

    Raises FreezeError if another trainable parameter is in no group, or one is in two.
    """
    take_out(optimizers(optimizer), handle.parameters())
    found = inner_optimizer(optimizer)
    if found is None:
        return None
    dropped.find(optimizer, found)
    check_groups(handle.model, found, dropped.names)
    return found


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
