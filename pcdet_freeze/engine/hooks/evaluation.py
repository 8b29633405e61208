"""Evaluate at the end of the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pcdet_freeze.engine.checkpoint.io import EPOCH_FILE, epoch_of
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.ema import model_to_evaluate
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


class EvaluationHook(Hook):
    """Calls ``evaluate(model, epoch)`` for each checkpoint of the last ``epochs`` epochs, oldest first.

    Epochs before ``start`` are skipped. The model has its final state afterwards.
    """

    def __init__(
        self, evaluate: Callable[[nn.Module, int], Any], folder: Path, epochs: int = 1, start: int = 0
    ) -> None:
        self.evaluate, self.folder, self.epochs, self.start = evaluate, folder, epochs, start

    def after_train(self, trainer: Trainer) -> None:
        last = trainer.epoch_number
        if self.epochs < 1 or last == 0:
            return
        distributed.share_buffers(trainer.model)
        model = distributed.unwrap(trainer.model)
        final = {name: value.clone() for name, value in model.state_dict().items()}
        for path in self._earlier(last):
            load_model_state(model, trained_weights(load_checkpoint(path)), path)
            self.evaluate(model, epoch_of(path))
        model.load_state_dict(final)
        self.evaluate(model_to_evaluate(trainer), last)

    def _earlier(self, last: int) -> list[Path]:
        first = max(last - self.epochs, self.start - 1)
        paths = [path for path in self.folder.glob("*.pth") if EPOCH_FILE.fullmatch(path.name)]
        return sorted((path for path in paths if first < epoch_of(path) < last), key=epoch_of)
