"""OPTIMIZATION.EMA: an exponential moving average of the weights, which evaluations and later stages use."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.ema import copying_frozen
from pcdet_freeze.freezing.verification.averages import KEY, stored_averages
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.host_copies import to_host


class Averages:
    """The averages of a model, in a copy of it.

    They are those of ``torch.optim.swa_utils.AveragedModel``, which copies its counter to the device in each
    update: the host would wait for the device in every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.updates = copy.deepcopy(model), 0
        self._average = copying_frozen(model, get_ema_multi_avg_fn(decay))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the present weights of ``model``; the first ones are copied."""
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for own, now in zip(_tensors_of(self.module), _tensors_of(model), strict=True):
            if not self.updates:
                own.copy_(now)
            group = groups.setdefault((own.device, own.dtype), ([], []))
            group[0].append(own)
            group[1].append(now)
        for averaged, current in groups.values() if self.updates else ():
            self._average(averaged, current, self.updates)
        self.updates += 1


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    return (tensor.detach() for tensor in itertools.chain(model.parameters(), model.buffers()))


class EmaHook(Hook):
    """Averages parameters and buffers after each step; ``trainer.averaged`` is the averaged model.

    Frozen tensors and integer buffers are copied (H5). A checkpoint holds the averages beside the weights,
    those that differ from them; a resume continues both.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averaged: Averages | None = None

    def before_train(self, trainer: Trainer) -> None:
        if self._averaged is None:
            model = distributed.unwrap(trainer.model)
            self._averaged = Averages(model, self.decay)
            self._load(self._averaged, trainer.resumed)
        trainer.averaged = self._averaged.module

    def after_step(self, trainer: Trainer) -> None:
        assert self._averaged is not None
        self._averaged.update(distributed.unwrap(trainer.model))

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        if self._averaged is None:
            return
        distributed.share_buffers(self._averaged.module)
        now, averages = distributed.unwrap(trainer.model).state_dict(), self._averaged.module.state_dict()
        differing = {name: value for name, value in averages.items() if not torch.equal(value, now[name])}
        updates = self._averaged.updates
        ours[KEY] = {"decay": self.decay, "updates": updates, "state": to_host(differing, copy=True)}

    def _load(self, averaged: Averages, resumed: Mapping[str, Any]) -> None:
        if KEY not in resumed:
            return
        updates, state = stored_averages(resumed)
        averaged.module.load_state_dict({**averaged.module.state_dict(), **state})
        averaged.updates = updates


def model_to_evaluate(trainer: Trainer) -> nn.Module:
    """The averaged model if there is one, else the model that trains; buffers are those of rank 0."""
    model = trainer.averaged if trainer.averaged is not None else distributed.unwrap(trainer.model)
    distributed.share_buffers(model)
    return model
