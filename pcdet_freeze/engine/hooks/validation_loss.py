"""OPTIMIZATION.VALIDATION_LOSS: the loss on the test frames, every few epochs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pcdet_freeze.datasets.loader import each_batch
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.ema import model_to_evaluate
from pcdet_freeze.engine.hooks.run_events import RunEvents
from pcdet_freeze.engine.required_labels import require_labels
from pcdet_freeze.engine.run_context import Data
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.checks.unchanged_state import Attributes, same_buffers
from pcdet_freeze.freezing.data_flow.module_graph import training_steps
from pcdet_freeze.freezing.eval_lock import eval_mode, requested_mode
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.deferred_numbers import Number, read_numbers
from pcdet_freeze.utils.rng import untouched_rng

KEY = "validation_loss"
"""of run.json and of the plain data in a checkpoint"""


class ValidationLossHook(Hook):
    """``val/loss`` and its parts after every ``every`` epochs and the last, over all test frames.

    Where a limit of iterations or OPTIMIZATION.BEST ends the run before its last epoch, it comes there.

    It is the loss of the training, of the heads that train, with every layer in eval mode (running
    statistics, no dropout) and without augmentation. Weights, buffers, modes and random generators are
    unchanged. With several ranks, frames that fill up the last batch count twice.

    Raises:
        DataError: the test data lack the labels of a head that trains.
    """

    def __init__(self, data: Data, every: int, events: RunEvents) -> None:
        self.data, self.every, self.events = data, every, events
        self._found: list[dict[str, float]] = []
        self._began_at = 0

    def before_train(self, trainer: Trainer) -> None:
        require_labels(distributed.unwrap(trainer.model), self.data.dataset)
        if not self._found:
            self._found = [dict(each) for each in trainer.resumed.get(KEY, [])]
        trainer.results[KEY] = self._found
        self._began_at = trainer.iteration

    def after_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch % self.every == 0 or trainer.epoch == trainer.epochs:
            self._measure(trainer)

    def after_train(self, trainer: Trainer) -> None:
        known = self._began_at, *(each["iteration"] for each in self._found)
        if trainer.iteration not in known:
            distributed.share_buffers(trainer.model)
            self._measure(trainer)

    def _measure(self, trainer: Trainer) -> None:
        epoch, place = trainer.epoch_number, trainer.epoch + trainer.offset / trainer.epoch_length
        found = validation_loss(model_to_evaluate(trainer), self.data, trainer.device)
        named = {f"val/{name}": value for name, value in found.items()}
        self.events.scalars(named, trainer.iteration, place)
        self.events.scalars_of_epoch(named, epoch)
        parts = "  ".join(f"{name}: {value:#.4g}" for name, value in found.items() if name != "loss")
        trainer.logger.info("Validation loss after epoch %d: %#.4g  %s", epoch, found["loss"], parts)
        self._found.append({"epoch": epoch, "iteration": trainer.iteration, "loss": found["loss"]})

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        ours[KEY] = [dict(each) for each in self._found]


def validation_loss(model: nn.Module, data: Data, device: torch.device) -> dict[str, float]:
    """``loss``, and the numbers of ``tb_dict``: means over the frames of all ranks; a collective call."""
    sums: dict[str, list[Number]] = {}
    frames: list[Number] = []
    with untouched_rng(), unchanged(model), torch.no_grad():
        if hasattr(data.sampler, "set_epoch"):
            data.sampler.set_epoch(0)
        for batch in each_batch(data.loader):
            data.move(batch, device)
            count = int(batch.get("batch_size", 1))
            # not __call__: hooks of training forwards (the frozen prefix, its cache) are not for these frames
            result, parts, _ = model.forward(batch)
            frames.append(count)
            for name, value in {**parts, "loss": result["loss"]}.items():
                if isinstance(value, int | float | torch.Tensor):
                    sums.setdefault(name, []).append(value * count)
    totals = {name: sum(read_numbers(values)) for name, values in sums.items()}
    totals = distributed.reduce_sum({"": float(sum(read_numbers(frames))), **totals})
    seen = totals.pop("")
    return {name: total / max(seen, 1) for name, total in totals.items()}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """All layers in eval mode, but losses as in training; afterwards the model is as it was."""
    attributes, normalization = Attributes(model), getattr(model, "loss_normalization", None)
    state = dict(vars(normalization)) if normalization is not None else {}
    losing = [model, *(getattr(model, name) for name, step in training_steps(model).items() if step.loss)]
    modes = [(part, requested_mode(part)) for part in losing]
    try:
        with eval_mode(model), same_buffers(model):
            for part in losing:
                part.training = True  # of itself alone: it assigns targets, its layers stay in eval mode
            if normalization is not None:
                normalization.across_ranks, normalization.micro_batches, normalization.known = False, 1, None
            if hasattr(model, "measure_gradients"):
                vars(model)["measure_gradients"] = False
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        if normalization is not None:
            vars(normalization).update(state)
        attributes.restore()
