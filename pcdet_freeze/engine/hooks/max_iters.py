"""--max_iters: an end that is counted in iterations."""

from __future__ import annotations

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer


class MaxItersHook(Hook):
    """Stops the run after ``iterations`` in all, those before a resume included."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def before_train(self, trainer: Trainer) -> None:
        trainer.stopped = trainer.iteration >= self.iterations

    def after_step(self, trainer: Trainer) -> None:
        trainer.stopped = trainer.stopped or trainer.iteration >= self.iterations
