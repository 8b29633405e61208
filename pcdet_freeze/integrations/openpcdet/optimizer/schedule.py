"""FREEZE.SCHEDULE inside OpenPCDet's loop, whose model, optimizer and scheduler cannot be replaced."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.lr_scale import lr_scaled_groups
from pcdet_freeze.integrations.openpcdet.optimizer.param_groups import group_for


class LrScales:
    """Learning-rate scales of parameters that a phase adds to param groups with one learning rate for all.

    OpenPCDet's schedulers set one learning rate for all groups. With the rate ``scale * lr`` a step, by
    gradient and by weight decay, is ``scale`` times as long: so each step is shortened by that factor.
    """

    def __init__(self) -> None:
        self._scaled: list[tuple[nn.Parameter, float, Tensor]] = []

    def add(self, parameters: Iterable[nn.Parameter], scale: float) -> None:
        """Scale the steps of ``parameters`` from now on; the first scale of a parameter counts."""
        known = {id(parameter) for parameter, _, _ in self._scaled}
        new = [parameter for parameter in parameters if scale != 1 and id(parameter) not in known]
        self._scaled += [(parameter, scale, parameter.detach().clone()) for parameter in new]

    def add_modules(self, plan: FreezePlan, model: nn.Module) -> None:
        """FREEZE.LR_SCALE, for what trains now and has no scale of a phase."""
        named = dict(model.named_parameters())
        for names, scale in lr_scaled_groups(plan, model):
            self.add([named[name] for name in names], scale)

    def refresh(self) -> None:
        """Weights were loaded: the next step starts from them."""
        self._scaled = [
            (parameter, scale, parameter.detach().clone()) for parameter, scale, _ in self._scaled
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Shorten the step that the optimizer has just made."""
        for parameter, scale, before in self._scaled:
            parameter.copy_(torch.lerp(before, parameter, scale))
            before.copy_(parameter)


def add_to_groups(model: nn.Module, optimizer: Optimizer | None, names: Iterable[str]) -> list[nn.Parameter]:
    """Append parameters to the param groups of their kind, without optimizer state; returns them.

    Args:
        optimizer: None if it is not built yet: it then includes them.
    """
    named = dict(model.named_parameters())
    parameters = [named[name] for name in names]
    if optimizer is None:
        return parameters
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in parameters:
        if id(parameter) not in known:
            group_for(model, optimizer, parameter)["params"].append(parameter)
    return parameters


def rewrap_ddp(model: nn.Module) -> nn.Module:
    """A new DistributedDataParallel around ``model.module``, for the parameters that train now.

    The old one may stay referenced in OpenPCDet's loop: its reducer reacts only to the backward of its own
    forward, which is not called again. A model without DDP is returned as it is.
    """
    if not isinstance(model, DistributedDataParallel):
        return model
    return type(model)(
        model.module,
        device_ids=model.device_ids,
        output_device=model.output_device,
        broadcast_buffers=model.broadcast_buffers,
        process_group=model.process_group,
    )
