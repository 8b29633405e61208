"""A toy whose frozen part is most of it, for measuring what freezing saves."""

from __future__ import annotations

import logging
from typing import Any

import torch
from engine_toy import ToyModel
from proof_toys import frozen
from torch import nn

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer

LOGGER = logging.getLogger("savings")
EPOCHS = 260
"""of four iterations: long enough"""


class Stops(Hook):
    """Ends the run after a few iterations, of which it does not tell beforehand."""

    def after_step(self, trainer: Trainer) -> None:
        trainer.stopped = trainer.iteration == 6


class WideVfe(ToyModel):
    """The frozen part is most of it; a live dropout lies behind, so that generators matter."""

    def __init__(self) -> None:
        super().__init__()
        wide = [part for _ in range(2) for part in (nn.Linear(64, 64), nn.BatchNorm1d(64))]
        self.vfe = nn.Sequential(nn.Linear(4, 64), *wide)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1))


def trainer_of(
    model: nn.Module | None = None,
    hooks: Any = (),
    epochs: int = EPOCHS,
    max_iters: int | None = None,
    **options: Any,
) -> Trainer:
    torch.manual_seed(7)
    chosen = {"ALLOW_RANDOM": True, **options}
    run = {"hooks": [*hooks, Stops()], "epochs": epochs, "max_iters": max_iters, "logger": LOGGER}
    return frozen(model or WideVfe(), "vfe", options=chosen, **run)
