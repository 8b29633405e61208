"""OPTIMIZATION.EMA: an exponential moving average of the weights, which evaluations and later stages use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.averages import KEY, stored_averages
from pcdet_freeze.freezing.ema import copying_frozen
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.host_copies import to_host


class EmaHook(Hook):
    """Averages parameters and buffers after each step; ``trainer.averaged`` is the averaged model.

    Frozen tensors and integer buffers are copied (H5). A checkpoint holds the averages beside the weights,
    those that differ from them; a resume continues both.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averaged: AveragedModel | None = None

    def before_train(self, trainer: Trainer) -> None:
        if self._averaged is None:
            model = distributed.unwrap(trainer.model)
            average = copying_frozen(model, get_ema_multi_avg_fn(self.decay))
            self._averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)  # type: ignore[arg-type]
            self._load(self._averaged, trainer.resumed)
        trainer.averaged = self._averaged.module

    def after_step(self, trainer: Trainer) -> None:
        assert self._averaged is not None
        self._averaged.update_parameters(distributed.unwrap(trainer.model))

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        if self._averaged is None:
            return
        distributed.share_buffers(self._averaged.module)
        now, averages = distributed.unwrap(trainer.model).state_dict(), self._averaged.module.state_dict()
        differing = {name: value for name, value in averages.items() if not torch.equal(value, now[name])}
        updates = int(self._averaged.n_averaged)
        ours[KEY] = {"decay": self.decay, "updates": updates, "state": to_host(differing, copy=True)}

    def _load(self, averaged: AveragedModel, resumed: Mapping[str, Any]) -> None:
        if KEY not in resumed:
            return
        updates, state = stored_averages(resumed)
        averaged.module.load_state_dict({**averaged.module.state_dict(), **state})
        averaged.n_averaged.fill_(updates)


def model_to_evaluate(trainer: Trainer) -> nn.Module:
    """The averaged model if there is one, else the model that trains; buffers are those of rank 0."""
    model = trainer.averaged if trainer.averaged is not None else distributed.unwrap(trainer.model)
    distributed.share_buffers(model)
    return model
