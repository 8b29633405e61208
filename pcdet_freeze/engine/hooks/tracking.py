"""The last events of a run: pictures of the report's frames, and facts and files for the trackers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.report import HasHandle
from pcdet_freeze.engine.hooks.run_events import RunEvents
from pcdet_freeze.engine.hooks.validation import BEST_FILE
from pcdet_freeze.engine.run_context import RunFolders
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.report.certificate import certificate_of
from pcdet_freeze.report.record import FILE, PAGE, Picture
from pcdet_freeze.utils import distributed


class Draws(Protocol):
    """Draws fixed frames: the hook of the report."""

    pictures: list[Picture]

    def draw_pictures(self, trainer: Trainer) -> None: ...


class LastEventsHook(Hook):
    """Stands behind the hook of the report, whose pictures and files it hands on, and closes the events.

    The frames are drawn after each evaluation between epochs, and at the end.

    Args:
        owner: the hook that froze the model; None where nothing is frozen.
    """

    def __init__(
        self, events: RunEvents, report: Draws, folders: RunFolders, owner: HasHandle | None
    ) -> None:
        self.events, self.report, self.folders, self.owner = events, report, folders, owner
        self._certified: FreezeHandle | None = None

    def before_epoch(self, trainer: Trainer) -> None:
        owner = self.owner
        if self.events.trackers and owner is not None and self._certified is not owner.handle:
            self._certified = owner.handle  # of a new phase of the schedule
            digest = certificate_of(owner.handle).digest
            self.events.trackers.note({"certificate": digest, "frozen": owner.handle.summary()})

    def after_epoch(self, trainer: Trainer) -> None:
        if trainer.iterations_left and self.events.is_open and self.events.is_evaluated(trainer.iteration):
            self.report.draw_pictures(trainer)
            self._send_pictures(trainer)

    def after_train(self, trainer: Trainer) -> None:
        if distributed.rank() != 0:
            return
        self._send_pictures(trainer)
        self.events.close()
        ckpt = self.folders.ckpt
        last = ckpt / f"checkpoint_epoch_{trainer.epoch_number}.pth"
        self.events.trackers.add_files("checkpoints", "model", [last, ckpt / BEST_FILE])
        self._add_report()

    def on_exception(self, trainer: Trainer) -> None:
        if isinstance(sys.exc_info()[1], Exception):  # a signal leaves no report
            self._add_report()

    def _send_pictures(self, trainer: Trainer) -> None:
        for picture in self.report.pictures:
            name = Path(picture.file).stem
            self.events.picture(f"frames/{name}", self.folders.root / picture.file, trainer.iteration)

    def _add_report(self) -> None:
        root = self.folders.root
        self.events.trackers.add_files("report", "report", [root / PAGE, root / FILE, root / "run.json"])
