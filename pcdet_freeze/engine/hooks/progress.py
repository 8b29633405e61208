"""A progress bar for whoever watches the terminal."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed


class ProgressHook(Hook):
    """One bar over all iterations, on rank 0, where standard error is a terminal (or ``show`` says so)."""

    def __init__(self, show: bool | None = None) -> None:
        self.show = sys.stderr.isatty() if show is None else show
        self._bar: Any = None

    def before_train(self, trainer: Trainer) -> None:
        if self.show and distributed.rank() == 0:
            total = trainer.epochs * trainer.epoch_length
            self._bar = tqdm(
                total=total, initial=trainer.iteration, desc="train", dynamic_ncols=True, leave=True
            )

    def after_step(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.set_postfix(
                epoch=trainer.epoch_number, loss=f"{trainer.loss:.4g}", lr=f"{trainer.lr:.3e}", refresh=False
            )
            self._bar.update(1)

    def after_train(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()
