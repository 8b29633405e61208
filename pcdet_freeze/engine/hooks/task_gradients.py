"""Measure the gradient norm of each task at the trunk, for TensorBoard."""

from __future__ import annotations

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed


class TaskGradientHook(Hook):
    """Makes the detector report ``grad_norm_<head>`` in the first and in every ``every``-th iteration.

    The norms are in ``trainer.tb_dict`` of that iteration, beside each task's loss. They cost a backward pass
    a task and keep the graph in memory, so OPTIMIZATION.TASK_GRADIENTS (``every``) must ask for them. A model
    without ``measure_gradients`` is not changed.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def before_epoch(self, trainer: Trainer) -> None:
        self._set(trainer, trainer.iteration == 0 or self._is_due(trainer))

    def after_step(self, trainer: Trainer) -> None:
        self._set(trainer, self._is_due(trainer))

    def after_train(self, trainer: Trainer) -> None:
        self._set(trainer, False)

    on_exception = after_train

    def _is_due(self, trainer: Trainer) -> bool:
        return (trainer.iteration + 1) % self.every == 0

    def _set(self, trainer: Trainer, wanted: bool) -> None:
        model = distributed.unwrap(trainer.model)
        if hasattr(model, "measure_gradients"):
            model.measure_gradients = wanted  # type: ignore[assignment]
