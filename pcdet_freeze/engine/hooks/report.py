"""Write ``report.html`` and ``report.json`` at the end of a training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from pcdet_freeze.config import plain
from pcdet_freeze.engine.environment import environment_of, peak_memory, warnings_in
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.validation_loss import KEY as VALIDATION
from pcdet_freeze.engine.rerun import check_commands, rerun_command
from pcdet_freeze.engine.run_context import Data, TrainContext
from pcdet_freeze.engine.start_metrics import StartMetrics, stored_metrics
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.evaluation import TASK_METRICS
from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.report.certificate import certificate_of
from pcdet_freeze.report.curves import Series
from pcdet_freeze.report.frames import FrameArtist
from pcdet_freeze.report.record import FILE, PAGE, Part, Picture, RunRecord, read_plain
from pcdet_freeze.report.run_page import LR, VALIDATION_LOSS, run_page
from pcdet_freeze.report.tree import mark_released, tasks_of, tree_of
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.output_files import write_text
from pcdet_freeze.utils.rng import untouched_rng

T = TypeVar("T")
MOST_SERIES = 12
KEY = "report"
"""our entry in the metadata of a checkpoint"""


class Evaluation(Protocol):
    """Evaluates a model of epoch N, and keeps its metrics."""

    data: Data
    metrics: dict[str, float]
    epoch: int | str
    """that ``metrics`` are of"""

    def __call__(self, model: nn.Module, epoch: int | str) -> dict[str, float]: ...


class HasHandle(Protocol):
    """The hook that froze the model. Each phase of a schedule has a handle of its own."""

    handle: FreezeHandle


class ReportHook(Hook):
    """Collects a :class:`~pcdet_freeze.report.record.RunRecord` on rank 0, and writes the report from it.

    It comes after all hooks that add to ``trainer.results`` or write ``run.json``. Curves and metrics of the
    start are stored in checkpoints, so that a resumed run reports all of its iterations. An error in here is
    a warning: a report never ends a training. A training that ends with an error gets a report without
    evaluation and pictures that names the error; one that a signal ends gets its report when it is resumed.

    Args:
        owner: the hook that froze the model; None where nothing is frozen.
    """

    def __init__(self, context: TrainContext, evaluation: Evaluation | None, owner: HasHandle | None) -> None:
        self.context, self.evaluation, self.owner = context, evaluation, owner
        optim_cfg = context.cfg.OPTIMIZATION
        self.evaluates_start = bool(optim_cfg.get("EVALUATE_START", False))
        test_data = evaluation.data.dataset if evaluation is not None else None
        self._artist = FrameArtist(test_data, context.cfg.CLASS_NAMES, int(optim_cfg.get("REPORT_FRAMES", 2)))
        self.pictures: list[Picture] = []
        """those that were drawn last"""
        self._series: dict[str, Series] = {}
        self._start = StartMetrics({}, "")
        self._seconds, self._begin, self._began_at = 0.0, time.monotonic(), 0
        self._trees: list[tuple[FreezeHandle, int, list[Part]]] = []

    def before_train(self, trainer: Trainer) -> None:
        self._begin, self._began_at = time.monotonic(), trainer.iteration
        fresh, pretrained = trainer.iteration == 0, self.context.options.pretrained_model
        if fresh and self.evaluates_start and self.evaluation is not None:
            self._start = self._evaluate_start(trainer, self.evaluation)
        if distributed.rank() != 0:
            return
        if not fresh and not self._series:
            self._try("the curves before the resume", lambda: self._restore(trainer.resumed.get(KEY)), None)
        if not self._start.source:
            cfg = plain(self.context.cfg)
            self._start = self._try(
                "metrics of the start", lambda: stored_metrics(pretrained, cfg), self._start
            )
        if fresh and pretrained is not None:
            look = self._artist.look
            model, loaded = unwrap(trainer.model), self.context.loaded
            self._try("pictures of the start", lambda: look(model, trainer.device, loaded), None)

    def before_epoch(self, trainer: Trainer) -> None:
        if self.owner is None or distributed.rank() != 0:
            return
        handle = self.owner.handle
        if not self._trees or self._trees[-1][0] is not handle:
            nothing: list[Part] = []
            parts = self._try("the module tree", lambda: tree_of(handle.model, handle), nothing)
            self._trees.append((handle, trainer.epoch, parts))

    def after_step(self, trainer: Trainer) -> None:
        if distributed.rank() != 0:
            return
        named = {"loss": trainer.loss_on_device, LR: trainer.lr}
        named |= {name: v for name, v in trainer.tb_dict.items() if name not in named and _is_number(v)}
        for name, value in list(named.items())[:MOST_SERIES]:
            self._series.setdefault(name, Series()).add(trainer.iteration, value)

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        ours[KEY] = {
            "curves": {name: series.to_plain() for name, series in self._series.items()},
            "seconds": self._spent(),
            "before": dict(self._start.values),
            "before_source": self._start.source,
        }

    def after_train(self, trainer: Trainer) -> None:
        stopped = trainer.iterations_left > 0
        if distributed.rank() == 0:
            self._write(trainer, "stopped early" if stopped else "finished", pictures=True)

    def on_exception(self, trainer: Trainer) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and trainer.iteration and distributed.rank() == 0:
            words = f"ended with {type(error).__name__}: {str(error).strip()[:2000]}"
            self._write(trainer, words, pictures=False)

    def _evaluate_start(self, trainer: Trainer, evaluation: Evaluation) -> StartMetrics:
        """Evaluate the model as it begins; all ranks take part, and no generator is changed."""
        with untouched_rng():
            values = dict(evaluation(unwrap(trainer.model), "start"))
        evaluation.metrics, evaluation.epoch = {}, ""
        return StartMetrics(values, "Before: the model as this run began, evaluated on the same test data.")

    def _restore(self, stored: Any) -> None:
        if not isinstance(stored, Mapping):
            return
        self._series = {name: Series.from_plain(curve) for name, curve in stored["curves"].items()}
        self._seconds = float(stored["seconds"])
        values = {str(name): float(value) for name, value in stored["before"].items()}
        self._start = StartMetrics(values, str(stored["before_source"]))

    def _spent(self) -> float:
        return self._seconds + time.monotonic() - self._begin

    def _write(self, trainer: Trainer, outcome: str, pictures: bool) -> None:
        root = self.context.folders.root
        record = RunRecord(outcome=outcome)
        for what, fill in self._parts(trainer, record, pictures).items():
            self._try(what, fill, None)

        def write() -> None:
            page = run_page(record, root)
            write_text(root / FILE, record.to_json())
            write_text(root / PAGE, page)
            self.context.logger.info("Report: %s", root / PAGE)

        self._try("the report", write, None)

    def _parts(self, trainer: Trainer, record: RunRecord, pictures: bool) -> dict[str, Callable[[], None]]:
        """Name -> what fills a part of ``record``. A part that fails leaves the others."""
        parts: dict[str, Callable[[], None]] = {
            "the run": lambda: self._fill_run(trainer, record),
            "cost": lambda: self._fill_cost(trainer, record),
            "the module tree": lambda: self._fill_tree(trainer, record),
            "the certificate": lambda: self._fill_proof(trainer, record),
            "tasks and metrics": lambda: self._fill_tasks(trainer, record),
            "curves": lambda: self._fill_curves(trainer, record),
            "the command": lambda: self._fill_command(trainer, record),
        }
        if pictures:
            parts["pictures"] = lambda: self._fill_pictures(trainer, record)
        parts["warnings"] = lambda: record.warnings.extend(warnings_in(self.context.folders.root))
        return parts

    def _fill_run(self, trainer: Trainer, record: RunRecord) -> None:
        context, root = self.context, self.context.folders.root.resolve()
        record.name, record.folder = "/".join(root.parts[-3:]), str(root)
        record.finished = time.strftime("%Y-%m-%d %H:%M:%S")
        record.iterations, record.epochs = trainer.iteration, trainer.epoch
        record.environment = environment_of(context.device, context.world.size, context.seed)
        record.version = record.environment["pcdet_freeze"]
        record.config = plain(context.cfg)
        record.entries, record.schedule = list(context.plan.entries), self._schedule_lines()

    def _schedule_lines(self) -> list[str]:
        return [
            f"after {phase.epoch} epochs: {', '.join(phase.train)} trainable"
            for phase in self.context.plan.schedule
        ]

    def _fill_curves(self, trainer: Trainer, record: RunRecord) -> None:
        record.curves.update({name: series.read() for name, series in self._series.items()})
        if points := [[each["iteration"], each["loss"]] for each in trainer.results.get(VALIDATION, [])]:
            record.curves[VALIDATION_LOSS] = points

    def _fill_cost(self, trainer: Trainer, record: RunRecord) -> None:
        run = read_plain(self.context.folders.root / "run.json") or {}
        record.seconds, record.peak_bytes = self._spent(), peak_memory(trainer.device)
        record.savings = dict(trainer.results.get("freezing_saves") or run.get("freezing_saves") or {})
        if run.get("iterations") == trainer.iteration:
            record.seconds_per_iteration = dict(run.get("seconds_per_iteration") or {})

    def _fill_tree(self, trainer: Trainer, record: RunRecord) -> None:
        model, handle = unwrap(trainer.model), self.owner.handle if self.owner is not None else None
        parameters = list(model.parameters())
        record.parameters = sum(p.numel() for p in parameters)
        record.parameters_frozen = sum(p.numel() for p in handle.parameters()) if handle is not None else 0
        record.summary = handle.summary() if handle is not None else "nothing is frozen"
        record.notes = list(handle.notes) if handle is not None else []
        record.tree = tree_of(model, handle)
        for (_, _, before), (_, epoch, _) in zip(self._trees, self._trees[1:], strict=False):
            mark_released(record.tree, before, f"since epoch {epoch + 1}")

    def _fill_proof(self, trainer: Trainer, record: RunRecord) -> None:
        if self.owner is not None:
            record.certificate = certificate_of(self.owner.handle)
        record.drift = dict(trainer.results.get("output_drift") or {})
        if trainer.iteration == self._began_at:  # nothing was trained: an earlier process has compared
            former = read_plain(self.context.folders.root / FILE) or {}
            record.drift = dict(former.get("drift") or {}) or record.drift
        elif self._began_at and record.drift:
            record.notes.append(
                f"Outputs were compared with those of iteration {self._began_at}, where this process began."
            )

    def _fill_tasks(self, trainer: Trainer, record: RunRecord) -> None:
        labels = {name: TASK_METRICS.get(name).label for name in TASK_METRICS.names()}
        record.tasks = tasks_of(unwrap(trainer.model), labels, record.drift)
        record.before, record.before_source = dict(self._start.values), self._start.source
        # where an error ended the run, the last evaluation may be of an earlier epoch
        if self.evaluation is not None and self.evaluation.epoch == trainer.epoch_number:
            record.after = dict(self.evaluation.metrics)
            frames = len(self.evaluation.data.dataset)
            record.after_source = f"After: epoch {trainer.epoch_number}, {frames} test frames."

    def _fill_command(self, trainer: Trainer, record: RunRecord) -> None:
        context = self.context
        record.command = rerun_command(context)
        path = context.folders.ckpt / f"checkpoint_epoch_{trainer.epoch_number}.pth"
        record.checkpoint = str(path) if path.is_file() else ""
        record.pretrained = str(context.options.pretrained_model or "")
        record.checks = check_commands(
            context.options.pretrained_model,
            Path(path) if record.checkpoint else None,
            self.owner is not None,
        )

    def _fill_pictures(self, trainer: Trainer, record: RunRecord) -> None:
        record.pictures_note = self._artist.obstacle
        record.pictures = self._draw(trainer)

    def draw_pictures(self, trainer: Trainer) -> None:
        """Draw the frames with what the model finds now, as :attr:`pictures`; on rank 0."""
        self._try("pictures", lambda: self._draw(trainer), None)

    def _draw(self, trainer: Trainer) -> list[Picture]:
        self.pictures = []
        model = unwrap(trainer.model) if trainer.averaged is None else trainer.averaged
        self.pictures = self._artist.draw(model, trainer.device, self.context.folders.root)
        return self.pictures

    def _try(self, what: str, do: Callable[[], T], default: T) -> T:
        """``do()``, or ``default`` with a warning where it fails."""
        try:
            return do()
        except Exception as error:
            first = (str(error).strip() or repr(error)).splitlines()[0]
            self.context.logger.warning("The report lacks %s: %s: %s", what, type(error).__name__, first)
            return default


def _is_number(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)
