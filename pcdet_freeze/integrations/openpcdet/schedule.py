"""FREEZE.SCHEDULE inside OpenPCDet's loop, which keeps model, optimizer and scheduler to itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pcdet_freeze.freezing.schedule import AddedParameters
from pcdet_freeze.integrations.openpcdet.optimizer import group_for


class Rates:
    """Learning-rate scales of parameters that entered later, in an optimizer whose groups must not change.

    OpenPCDet's schedulers set one rate for all groups. A rate of ``scale * lr`` moves a parameter ``scale``
    times as far, by gradient and by weight decay: so each step is cut to that part of it.
    """

    def __init__(self) -> None:
        self._slow: list[tuple[nn.Parameter, float, Tensor]] = []

    def add(self, parameters: Iterable[nn.Parameter], scale: float) -> None:
        """Scale the steps of ``parameters`` from here on."""
        if scale != 1:
            self._slow += [(parameter, scale, parameter.detach().clone()) for parameter in parameters]

    def refresh(self) -> None:
        """Weights were loaded: the next step begins from them."""
        self._slow = [(parameter, scale, parameter.detach().clone()) for parameter, scale, _ in self._slow]

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimizer made a whole step."""
        for parameter, scale, before in self._slow:
            parameter.copy_(torch.lerp(before, parameter, scale))
            before.copy_(parameter)


def take_in(
    model: nn.Module, optimizer: torch.optim.Optimizer, entered: AddedParameters
) -> list[nn.Parameter]:
    """Put what enters into the groups of its kind, behind what is there, with fresh state; returns it."""
    named = dict(model.named_parameters())
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = [named[name] for name in entered.names]
    for parameter in parameters:
        if id(parameter) not in known:
            group_for(model, optimizer, parameter)["params"].append(parameter)
    return parameters


def wrapped_anew(model: nn.Module) -> nn.Module:
    """A new DistributedDataParallel in the place of ``model``, for what trains now; else ``model`` itself.

    The old one may live on in OpenPCDet's loop. Its reducer answers to backward passes of its own forwards
    only, and it gets none any more.
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
