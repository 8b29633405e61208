"""What a run reports while it trains: to TensorBoard's events, and to the trackers of its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pcdet_freeze.engine.hooks.event_file import EventFile
from pcdet_freeze.engine.tracking.process import Trackers
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.evaluation.precision_recall import PrecisionRecall
from pcdet_freeze.utils import distributed

EPOCH = "meta_data/epoch"


class RunEvents:
    """Events of a run, on rank 0; on other ranks nothing is written.

    The step of a tag is the iteration; a tag ``epoch/...`` has the epoch as its step. The scalar
    ``meta_data/epoch`` is the epoch of an iteration.
    """

    def __init__(self, folder: Path, trackers: Trackers | None = None) -> None:
        self.folder, self.trackers = folder, trackers or Trackers()
        self._file: EventFile | None = None
        self._trainer: Trainer | None = None
        self._evaluated: set[int] = set()

    def open(self, trainer: Trainer) -> None:
        """Begin, or continue after :meth:`close`, with the events of ``trainer``."""
        self._trainer = trainer
        if distributed.rank() == 0 and self._file is None:
            self._file = EventFile(self.folder, trainer.logger)
            if trainer.iteration:
                self._file.drop_after(trainer.iteration)

    @property
    def is_open(self) -> bool:
        """Whether events are written here."""
        return self._file is not None

    @property
    def epoch_now(self) -> float:
        """Epochs done, as a fraction: 2.5 in the middle of the third."""
        trainer = self._trainer
        return 0.0 if trainer is None else trainer.epoch + trainer.offset / trainer.epoch_length

    def scalars(self, values: Mapping[str, float], iteration: int, epoch: float) -> None:
        """Values at an iteration, which is at ``epoch``."""
        if self._file is None or not values:
            return
        for tag, value in values.items():
            self._file.add_scalar(tag, value, iteration)
        self.trackers.scalars(values, "iteration", iteration, epoch)

    def scalars_of_epoch(self, values: Mapping[str, float], epoch: int) -> None:
        """Values of a whole epoch, by epoch: with ``epoch/`` before their tags."""
        if self._file is None or not values:
            return
        named = {f"epoch/{tag}": value for tag, value in values.items()}
        for tag, value in named.items():
            self._file.add_scalar(tag, value, epoch)
        self.trackers.scalars(named, "epoch", epoch, epoch)

    def evaluation(
        self, epoch: int | str, metrics: Mapping[str, float], curves: Sequence[PrecisionRecall]
    ) -> None:
        """The metrics of an evaluation by their names in ``result.json``, and its precision-recall curves.

        An evaluation that is repeated after the training is not written twice.
        """
        trainer = self._trainer
        if self._file is None or trainer is None:
            return
        now = trainer.iteration
        if isinstance(epoch, int) and epoch != trainer.epoch_number:  # of a stored checkpoint
            now = epoch * trainer.epoch_length
        if now in self._evaluated:
            return
        self._evaluated.add(now)
        whole = epoch if isinstance(epoch, int) else trainer.epoch
        self.scalars(metrics, now, now / trainer.epoch_length)
        self.scalars_of_epoch(metrics, whole)
        drawn = [curve for curve in curves if len(curve.true)]  # at least one label is found
        for curve in drawn:
            self._file.add_curve(curve, f"pr/{curve.name}", now)
        self.trackers.curves(drawn, now)

    def is_evaluated(self, iteration: int) -> bool:
        """Whether there was an evaluation at this iteration."""
        return iteration in self._evaluated

    def picture(self, tag: str, path: Path, iteration: int) -> None:
        """A PNG at an iteration; one that cannot be read is left out with a warning."""
        if self._file is None or self._trainer is None:
            return
        try:
            png = path.read_bytes()
        except OSError as error:
            self._trainer.logger.warning("The events lack the picture %s: %s", path, error)
        else:
            self._file.add_picture(tag, png, iteration)
            self.trackers.picture(tag, png, iteration)

    def flush(self) -> None:
        """Write what waits to the disk."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the events; the runs of the trackers end with the session."""
        if self._file is not None:
            self._file.close()
            self._file = None
