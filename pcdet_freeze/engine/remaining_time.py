"""How long a training will still take: from its recent iterations and the pauses between its epochs."""

from __future__ import annotations

import time
from collections import deque
from statistics import fmean

from pcdet_freeze.engine.trainer import Trainer


class RemainingTime:
    """Estimates the remaining seconds of a training.

    What lies between two epochs (validation, checkpoints, the start of loader processes) is counted apart: it
    recurs once an epoch. Of the iterations only the last ``WINDOW`` count, so the estimate follows a phase of
    FREEZE.SCHEDULE or a cache that makes them slower or faster, which it cannot know beforehand. The first
    ``WARM_UP`` iterations, in which code is compiled and checked, count as long as there are no others.
    """

    WINDOW, WARM_UP = 50, 3

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=self.WINDOW)
        self._first: list[float] = []
        self._pauses: list[float] = []
        self._done = 0
        self._last: float | None = None
        self._epoch = -1

    def step(self, trainer: Trainer) -> None:
        """An iteration is done."""
        now = time.monotonic()
        if self._last is not None:
            within = self._steps if self._done >= self.WARM_UP else self._first
            kind = within if trainer.epoch_number == self._epoch else self._pauses
            kind.append(now - self._last)
        self._done += 1
        self._last, self._epoch = now, trainer.epoch_number

    def left(self, trainer: Trainer) -> float | None:
        """Seconds from now to the end of the training; None as long as only one iteration is done."""
        known = self._known() or self._pauses  # epochs of one iteration have pauses only
        if not trainer.iterations_left:
            return self._pause() if trainer.offset == trainer.epoch_length else 0.0
        if not known:
            return None
        ends = (trainer.offset + trainer.iterations_left) // trainer.epoch_length
        return fmean(known) * trainer.iterations_left + self._pause() * ends

    def _pause(self) -> float:
        """Seconds between two epochs beyond those of an iteration."""
        known = self._known()
        if not self._pauses or not known:
            return 0.0
        return max(0.0, fmean(self._pauses) - fmean(known))

    def _known(self) -> list[float]:
        return [*self._steps] or self._first
