"""Stop a training after a signal: finish the step, write a checkpoint, raise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import write_checkpoint
from pcdet_freeze.engine.ranks.stop_agreement import StopAgreement
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.signals.stop_signals import StopSignals, stopped_by


class StopHook(Hook):
    """Ends the training after the step in which a signal arrives, on all ranks after the same step.

    It comes first: on a stop it writes ``latest_model.pth`` and raises before ``after_train`` of other
    hooks. ``on_stop`` is then called with the signal on rank 0.

    Raises:
        KeyboardInterrupt: after SIGINT.
        StoppedBySignal: after any other signal.
    """

    def __init__(
        self,
        folder: Path,
        extra: Mapping[str, Any] | None = None,
        agreement: StopAgreement | None = None,
        on_stop: Callable[[int], None] | None = None,
    ) -> None:
        self.path, self.extra, self.on_stop = folder / "latest_model.pth", extra or {}, on_stop
        self.agreement = agreement or StopAgreement(0, 1, StopSignals())
        self.signals = self.agreement.signals

    def before_epoch(self, trainer: Trainer) -> None:
        self.signals.install()  # before it there is nothing to save: a signal ends the run at once
        self.agreement.begin(trainer.iteration, lambda: not trainer.in_epoch)

    def after_step(self, trainer: Trainer) -> None:
        if self.agreement.must_stop(trainer.iteration):
            trainer.stopped = True

    def after_train(self, trainer: Trainer) -> None:
        number = self._signal_of_all_ranks()
        if number:
            write_checkpoint(trainer, self.path, self.extra)
            self._raise(number)

    def on_exception(self, trainer: Trainer) -> None:
        self.agreement.end()
        self.signals.restore()
        self.signals.received = None  # a later run of the same trainer starts anew

    def before_evaluation(self) -> None:
        """Raise if a signal arrived while the last checkpoint was written; later ones end the run at once."""
        number = self._signal_of_all_ranks()
        self.agreement.end()
        self.signals.restore()
        if number:
            self._raise(number)

    def _signal_of_all_ranks(self) -> int:
        return max(distributed.gather(self.signals.received or 0))

    def _raise(self, number: int) -> None:
        if (on_stop := self.on_stop) is not None:
            # the others wait: srun --kill-on-bad-exit would end rank 0 with the first of them
            distributed.main_only(lambda: on_stop(number))
        raise stopped_by(number)


class StopBeforeEvaluationHook(Hook):
    """Stands between the hooks that write checkpoints and those that evaluate."""

    def __init__(self, stop: StopHook) -> None:
        self.stop = stop

    def after_train(self, trainer: Trainer) -> None:
        self.stop.before_evaluation()
