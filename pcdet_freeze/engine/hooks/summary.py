"""`run.json`: what a run did, in figures, for whoever compares two runs."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed


class SummaryHook(Hook):
    """Writes ``run.json`` at the end: iterations, and the median seconds of one, of its data, its forward.

    What other hooks left in ``trainer.results`` stands beside them. The first iterations warm caches up and
    are left out where there are enough others.
    """

    WARM_UP = 5

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seconds: list[dict[str, float]] = []

    def before_train(self, trainer: Trainer) -> None:
        self._seconds = []

    def after_step(self, trainer: Trainer) -> None:
        self._seconds.append(dict(trainer.seconds))

    def after_train(self, trainer: Trainer) -> None:
        counted = self._seconds[self.WARM_UP :] or self._seconds
        medians = {key: median(s[key] for s in counted) for key in trainer.seconds} if counted else {}
        if distributed.rank() == 0:
            values = {
                "iterations": trainer.iteration,
                "epochs": trainer.epoch,
                "seconds_per_iteration": medians,
                **trainer.results,
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(values, indent=1) + "\n")
