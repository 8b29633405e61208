"""Write checkpoints: every few epochs, every few minutes, and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pcdet_freeze.engine.checkpoint.io import checkpoint_state, prune, save_checkpoint
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed


def write_checkpoint(trainer: Trainer, path: Path, extra: Mapping[str, Any]) -> None:
    """Collect the state on all ranks and write it on rank 0; a collective call, with one error for all."""
    state = checkpoint_state(trainer, extra)
    distributed.main_only(lambda: save_checkpoint(state, path))


class CheckpointHook(Hook):
    """``checkpoint_epoch_N.pth`` every ``every`` epochs and at the end; keeps the ``keep`` newest.

    A run that ends in the middle of epoch N writes ``checkpoint_epoch_N.pth`` too; the whole epoch overwrites
    it later.
    """

    def __init__(
        self, folder: Path, every: int = 1, keep: int = 30, extra: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.every, self.keep, self.extra = folder, every, keep, extra or {}
        self._saved_at: int | None = None

    def before_train(self, trainer: Trainer) -> None:
        if self._saved_at is None:  # an interrupted run that continues may have unsaved iterations
            self._saved_at = trainer.iteration

    def after_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch % self.every == 0:
            self._save(trainer)

    def after_train(self, trainer: Trainer) -> None:
        if trainer.iteration != self._saved_at:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = self.folder / f"checkpoint_epoch_{trainer.epoch_number}.pth"
        write_checkpoint(trainer, path, self.extra)
        self._saved_at = trainer.iteration
        if distributed.rank() == 0:
            prune(self.folder, self.keep)
        trainer.logger.info("Saved %s (iteration %d)", path, trainer.iteration)


class TimedCheckpointHook(Hook):
    """``latest_model.pth`` every ``seconds`` seconds, in the middle of an epoch too."""

    ASK_EVERY = 20
    """iterations between two broadcasts of rank 0's clock, with several processes"""

    def __init__(
        self,
        folder: Path,
        seconds: float,
        extra: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.seconds, self.extra, self.clock = (
            folder / "latest_model.pth",
            seconds,
            extra or {},
            clock,
        )
        self._last = clock()

    def before_train(self, trainer: Trainer) -> None:
        self._last = self.clock()

    def after_step(self, trainer: Trainer) -> None:
        if self._is_due(trainer):
            write_checkpoint(trainer, self.path, self.extra)
            self._last = self.clock()

    def _is_due(self, trainer: Trainer) -> bool:
        if distributed.is_distributed() and trainer.iteration % self.ASK_EVERY:
            return False
        return distributed.from_main(self.clock() - self._last >= self.seconds)
