"""The log of a training: lines, TensorBoard scalars, a progress bar, run.json."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.run_events import EPOCH, RunEvents
from pcdet_freeze.engine.remaining_time import RemainingTime
from pcdet_freeze.engine.tracking.process import Trackers
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.deferred_numbers import Number, read_numbers
from pcdet_freeze.utils.output_files import write_text
from pcdet_freeze.utils.progress import clock, shows_bars

UNKNOWN = "--:--"
"""total time of a training of which only the first iteration is done"""
BAR = (
    "{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}} "
    "[{{elapsed}}<{left}, {{rate_fmt}}{{postfix}}]"
)
"""as tqdm's own; the remaining time is that of the log"""


class LogHook(Hook):
    """One line every ``every`` iterations and at the end of each epoch; names the skipped frames.

    With several heads it ends with the loss of each.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._sums: dict[str, float] = {}
        self._losses: list[Number] = []
        self._count, self._finite = 0, 0
        self._skipped: list[str] = []
        self._begin = time.monotonic()
        self._remaining = RemainingTime()

    def before_train(self, trainer: Trainer) -> None:
        self._begin, self._remaining = time.monotonic(), RemainingTime()

    def before_epoch(self, trainer: Trainer) -> None:
        self._sums, self._losses, self._skipped = {}, [], []
        self._count, self._finite = 0, 0

    def after_step(self, trainer: Trainer) -> None:
        self._count += 1
        self._remaining.step(trainer)
        self._losses.append(trainer.loss_on_device)  # read where a line is logged
        for name, value in trainer.seconds.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._skipped += trainer.batch.get("skipped_frames", [])
        last = trainer.offset == trainer.epoch_length or trainer.iterations_left == 0 or trainer.stopped
        if trainer.iteration % self.every == 0 or self._count == 1 or last:
            trainer.logger.info("%s", self._line(trainer))

    def after_epoch(self, trainer: Trainer) -> None:
        if self._skipped:
            names = sorted(set(self._skipped))
            trainer.logger.warning("Skipped %d bad frames in this epoch: %s", len(names), ", ".join(names))

    def _line(self, trainer: Trainer) -> str:
        # a step that was skipped has a loss that is not finite (ON_NONFINITE: skip)
        losses = [loss for loss in read_numbers(self._losses) if math.isfinite(loss)]
        self._sums["loss"] = sum(losses, self._sums.get("loss", 0.0))
        self._losses, self._finite = [], self._finite + len(losses)
        mean = {name: total / self._count for name, total in self._sums.items()}
        mean["loss"] = self._sums["loss"] / self._finite if self._finite else math.nan
        now, left = trainer.seconds, self._remaining.left(trainer)
        spent = time.monotonic() - self._begin
        total = UNKNOWN if left is None else clock(spent + left)
        epoch, length = trainer.epoch_number, trainer.epoch_length
        return (
            f"Train: {epoch:>4}/{trainer.epochs} ({100 * epoch // trainer.epochs:>3}%) "
            f"[{trainer.offset:>4}/{length} ({100 * trainer.offset // length:>3}%)]  "
            f"Loss: {trainer.loss:#.4g} ({mean['loss']:#.3g})  LR: {trainer.lr:.3e}  "
            f"Time cost: {clock(spent)}/{total}  Acc_iter {trainer.iteration}  "
            f"Data time: {now['data']:.2f}({mean['data']:.2f})  "
            f"Forward time: {now['forward']:.2f}({mean['forward']:.2f})  "
            f"Batch time: {now['batch']:.2f}({mean['batch']:.2f}){_head_losses(trainer.tb_dict)}"
        )


def _head_losses(figures: Mapping[str, Any]) -> str:
    """The loss of each head in the last iteration, where there are several: "  loss_rpn: 0.41  loss_..."."""
    names = [name for name in figures if name.startswith("loss_") and not name.startswith("loss_weight_")]
    if len(names) < 2:
        return ""
    values = read_numbers(figures[name] for name in names)
    return "".join(f"  {name}: {value:#.4g}" for name, value in zip(names, values, strict=True))


@dataclass
class _Row:
    """The numbers of one iteration; some may still be on a device."""

    iteration: int
    epoch: float
    values: dict[str, Number]


class TensorboardHook(Hook):
    """OpenPCDet's tags: ``train/loss``, ``train/<part>``, ``meta_data/learning_rate``; and the epoch.

    ``epoch/train/loss`` is the mean over an epoch, by epoch. Numbers that are on a device are kept for up to
    ``EVERY`` iterations and read together.

    Args:
        keep_open: hooks that come later write to the same :attr:`events`, and one of them closes these.
    """

    EVERY = 50

    def __init__(self, folder: Path, trackers: Trackers | None = None, keep_open: bool = False) -> None:
        self.events, self.keep_open = RunEvents(folder, trackers), keep_open
        self._waiting: list[_Row] = []
        self._sums: dict[str, tuple[float, int]] = {}

    def before_train(self, trainer: Trainer) -> None:
        self.events.open(trainer)

    def before_epoch(self, trainer: Trainer) -> None:
        self._sums = {}

    def after_step(self, trainer: Trainer) -> None:
        if not self.events.is_open:
            return
        epoch = self.events.epoch_now
        named = {"train/loss": trainer.loss_on_device, "meta_data/learning_rate": trainer.lr, EPOCH: epoch}
        named |= {
            f"train/{name}": value
            for name, value in trainer.tb_dict.items()
            if isinstance(value, (int, float, torch.Tensor))
        }
        self._waiting.append(_Row(trainer.iteration, epoch, named))
        on_host = trainer.device.type == "cpu"
        if on_host or trainer.iteration % self.EVERY == 0:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        read = iter(read_numbers(value for row in waiting for value in row.values.values()))
        for row in waiting:
            values = {tag: next(read) for tag in row.values}
            self.events.scalars(values, row.iteration, row.epoch)
            for tag, value in values.items():
                if tag.startswith("train/") and math.isfinite(value):
                    total, count = self._sums.get(tag, (0.0, 0))
                    self._sums[tag] = total + value, count + 1

    def after_epoch(self, trainer: Trainer) -> None:
        self._write()
        means = {tag: total / count for tag, (total, count) in self._sums.items()}
        self.events.scalars_of_epoch(means, trainer.epoch)

    def after_train(self, trainer: Trainer) -> None:
        self._write()
        if self.keep_open:
            self.events.flush()
        else:
            self.events.close()

    def on_exception(self, trainer: Trainer) -> None:
        self._write()
        self.events.close()


class ProgressHook(Hook):
    """One bar over all iterations, on rank 0, if standard error is a terminal (``show`` overrides this)."""

    def __init__(self, show: bool | None = None) -> None:
        self.show = shows_bars() if show is None else show
        self._bar: Any = None
        self._shown = -math.inf
        self._remaining = RemainingTime()

    def before_train(self, trainer: Trainer) -> None:
        if self.show and distributed.rank() == 0:
            done, self._remaining = trainer.iteration, RemainingTime()
            self._bar = tqdm(
                total=done + trainer.iterations_left,
                initial=done,
                desc="train",
                dynamic_ncols=True,
                leave=True,
                bar_format=BAR.format(left=UNKNOWN),
            )

    def after_step(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._remaining.step(trainer)
            if time.monotonic() - self._shown >= 1:  # reading the loss waits for the device
                left = self._remaining.left(trainer)
                self._bar.bar_format = BAR.format(left=UNKNOWN if left is None else clock(left))
                self._bar.set_postfix(epoch=trainer.epoch_number, loss=f"{trainer.loss:.4g}", refresh=False)
                self._shown = time.monotonic()
            self._bar.update(1)

    def after_train(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()

    on_exception = after_train


class SummaryHook(Hook):
    """Writes ``run.json`` at the end: iterations, and the median seconds of one, of its data, its forward.

    ``trainer.results`` of other hooks is added. The first ``WARM_UP`` iterations are left out of the medians
    where there are more. A run that had nothing left to train keeps the file that it has written before.
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
        values = {
            "iterations": trainer.iteration,
            "epochs": trainer.epoch,
            "seconds_per_iteration": medians,
            **trainer.results,
        }
        distributed.main_only(lambda: self._write(values))

    def _write(self, values: dict[str, Any]) -> None:
        if self._seconds or self._written_iterations() != values["iterations"]:
            write_text(self.path, json.dumps(values, indent=1) + "\n")

    def _written_iterations(self) -> object:
        """The iterations that the present file names; None without a valid one."""
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return found.get("iterations") if isinstance(found, dict) else None
