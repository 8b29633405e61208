"""A hook of a config that ends the run after an iteration, as if it were killed there."""

from __future__ import annotations

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer


class StopAt(Hook):
    """Ends the run after ``iteration``."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self, trainer: Trainer) -> None:
        trainer.stopped = trainer.iteration == self.iteration
