"""Predict the samples of the next batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pcdet_freeze.engine.trainer import Trainer


class Lookahead:
    """Reads the order of a sampler that is a function of the epoch; skipped frames are not predicted."""

    def __init__(self) -> None:
        self._known: tuple[int, int] | None = None
        self._order: list[int] = []

    def after(self, trainer: Trainer) -> Sequence[int]:
        """Return the sample indices of the batch after the trainer's current one; empty if unknown."""
        sampler: Any = trainer.sampler
        size = getattr(trainer.loader, "batch_size", None)
        first = getattr(sampler, "start", None)
        if first is None or size is None:
            return ()
        if self._known != (trainer.epoch, first):
            self._known, self._order = (trainer.epoch, first), list(sampler)
        begin = (trainer.batches_begun + 1) * size - first
        return self._order[begin : begin + size]
