"""Evaluate between epochs: keep the best checkpoint, stop early, guard the tasks that are not frozen."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pcdet_freeze.config.schema import BestSettings, ValidationKeys
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import write_checkpoint
from pcdet_freeze.engine.hooks.ema import model_to_evaluate
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CheckpointError, ConfigError, TrainingError
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.names import did_you_mean, nearest
from pcdet_freeze.utils.settings.sections import read_section

KEY = "validation"
"""key in the plain data of a checkpoint"""
BEST_FILE = "checkpoint_best.pth"
LOWER = ("chamfer_m",)
"""ends of metrics of which the lower value is the better one"""


def mode_of(metric: str) -> Literal["max", "min"]:
    """Whether the higher or the lower value of ``metric`` is better."""
    return "min" if metric.endswith(LOWER) else "max"


def task_of(metric: str) -> str:
    """The task of a metric: "segmentation" of "segmentation/mIoU", "detection" of "Car_3d/moderate_R40"."""
    task = metric.partition("/")[0]
    return task if task in ("segmentation", "lane") else "detection"


@dataclass
class Progress:
    """What the evaluations so far found; plain data, for checkpoints."""

    baseline: dict[str, float] = field(default_factory=dict)
    """guarded metrics before the training"""
    metric: str = ""
    """of the values below"""
    best: float | None = None
    best_epoch: int = 0
    waited: int = 0
    """evaluations since the best one"""
    stopped: bool = False
    """whether the run ended early"""

    @classmethod
    def of(cls, plain: object) -> Progress:
        """Read what a checkpoint stores; CheckpointError for damage."""
        try:
            return cls(**(plain or {}))  # type: ignore[arg-type]
        except TypeError as error:
            raise CheckpointError(
                f"The {KEY} data of a checkpoint must be what this package wrote, but cannot be read: {error}"
            ) from error


class ValidationHook(Hook):
    """Evaluates after epochs; OPTIMIZATION.BEST and OPTIMIZATION.GUARD.

    It stands before the hooks that write checkpoints, so that each of them holds the evaluation of its epoch.

    Args:
        evaluate: (model, epoch) -> metric name -> value; a collective call.
        folder: of the checkpoints.
        guard: metric -> how much it may fall below its value before the training.

    Raises:
        ConfigError: a metric that the evaluation does not give.
        TrainingError: a guarded metric fell too far.
    """

    def __init__(
        self,
        evaluate: Callable[[nn.Module, int], Mapping[str, float]],
        folder: Path,
        best: BestSettings | None = None,
        guard: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.evaluate, self.path, self.best = evaluate, folder / BEST_FILE, best
        self.guard, self.extra = dict(guard or {}), extra or {}
        self.progress = Progress()

    def before_train(self, trainer: Trainer) -> None:
        if KEY in trainer.resumed:
            self.progress = self._continued(Progress.of(trainer.resumed[KEY]))
        if new := [name for name in self.guard if name not in self.progress.baseline]:
            self._measure_baseline(trainer, new)
        if self.progress.stopped:
            trainer.logger.info("The run ended early after epoch %d (OPTIMIZATION.BEST)", trainer.epoch)
            trainer.stopped = True

    def _continued(self, then: Progress) -> Progress:
        """The progress of a checkpoint under the present settings, which may be others than its own."""
        best = self.best
        if best is None or then.metric not in ("", best.metric):
            return Progress(then.baseline)
        stopped = then.stopped and best.patience is not None and then.waited >= best.patience
        return replace(then, stopped=stopped)

    def _measure_baseline(self, trainer: Trainer, names: Sequence[str]) -> None:
        found = self._evaluate(trainer, trainer.epoch)
        now = {name: _value(found, name, "GUARD") for name in names}
        if wrong := [name for name, value in now.items() if not math.isfinite(value)]:
            raise TrainingError(
                f"OPTIMIZATION.GUARD needs metrics that are numbers before the training; got "
                f"{', '.join(f'{name} {now[name]:g}' for name in wrong)}. Leave them out of GUARD."
            )
        self.progress.baseline |= now
        values = ", ".join(f"{name} {value:.4g}" for name, value in now.items())
        trainer.logger.info("OPTIMIZATION.GUARD: before the training %s", values)

    def after_epoch(self, trainer: Trainer) -> None:
        every = self.best.every if self.best is not None else 1
        is_due = trainer.epoch % every == 0 or trainer.epoch == trainer.epochs
        if not (self.guard or is_due):
            return
        found = self._evaluate(trainer, trainer.epoch)
        self._check_guard(trainer, found)
        if self.best is not None and is_due:
            self._compare(trainer, self.best, found)

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        ours[KEY] = asdict(self.progress)

    def _evaluate(self, trainer: Trainer, epoch: int) -> Mapping[str, float]:
        model = model_to_evaluate(trainer)
        with untouched_rng():
            return self.evaluate(model, epoch)

    def _check_guard(self, trainer: Trainer, found: Mapping[str, float]) -> None:
        for name, allowed in self.guard.items():
            before, now = self.progress.baseline[name], _value(found, name, "GUARD")
            fall = before - now if mode_of(name) == "max" else now - before
            if not fall <= allowed:  # NaN is no value that the task keeps
                raise TrainingError(
                    f"The task {task_of(name)} must keep its metric within OPTIMIZATION.GUARD, but {name} "
                    f"went from {before:.4g} to {now:.4g} after epoch {trainer.epoch}: by {fall:.4g}, where "
                    f"{allowed:g} is allowed. Freeze what the task needs (`pcdet-freeze suggest --keep`), "
                    "lower its learning rate (MODEL.FREEZE.LR_SCALE), or allow more. "
                    f"{_newest(self.path.parent, trainer.logger)}"
                )

    def _compare(self, trainer: Trainer, best: BestSettings, found: Mapping[str, float]) -> None:
        now, state = _value(found, best.metric, "BEST.METRIC"), self.progress
        sign = 1 if (best.mode or mode_of(best.metric)) == "max" else -1
        state.metric = best.metric
        better = state.best is None or sign * (now - state.best) > best.min_delta
        if math.isfinite(now) and better:
            state.best, state.best_epoch, state.waited = now, trainer.epoch, 0
            write_checkpoint(trainer, self.path, self.extra)
            trainer.logger.info("Best %s so far: %.4g, saved to %s", best.metric, now, self.path)
        else:
            state.waited += 1
            if best.patience is not None and state.waited >= best.patience:
                state.stopped = trainer.stopped = True
                known = f"{state.best:.4g} of epoch {state.best_epoch}" if state.best_epoch else "any number"
                text = "Ended early: %s is not better than %s for %d evaluations"
                trainer.logger.info(text, best.metric, known, state.waited)
        trainer.results["best"] = {
            "metric": best.metric,
            "value": state.best,
            "epoch": state.best_epoch,
            "ended_early": state.stopped,
        }


def validation_settings(
    optim_cfg: Mapping[str, Any],
) -> tuple[BestSettings | None, dict[str, float]] | None:
    """OPTIMIZATION.BEST and GUARD; None without them. ConfigError with every fault."""
    given = {key: value for key in ("BEST", "GUARD") if (value := optim_cfg.get(key)) is not None}
    if not given:
        return None
    found, faults = read_section(ValidationKeys, given, "OPTIMIZATION")
    raise_faults(faults)
    assert found is not None
    return found.best, dict(found.guard or {})


def evaluates_between(optim_cfg: Mapping[str, Any]) -> bool:
    """Whether a training needs its test data between epochs: BEST, GUARD, VALIDATION_LOSS."""
    return validation_settings(optim_cfg) is not None or bool(optim_cfg.get("VALIDATION_LOSS"))


def _newest(folder: Path, logger: logging.Logger) -> str:
    """A sentence about the checkpoint in ``folder`` with the most iterations."""
    try:
        found = newest_checkpoint(folder, logger)
    except CheckpointError as error:
        return str(error)
    if found is None:
        return f"No checkpoint is in {folder} yet."
    path, state = found
    return f"The newest checkpoint is {path} (epoch {state.get('epoch')}, iteration {state.get('it')})."


def _value(found: Mapping[str, float], name: str, key: str) -> float:
    if name not in found:
        close = ", ".join(nearest(name, found)) or ", ".join(list(found)[:8])
        raise ConfigError(
            f"OPTIMIZATION.{key} must name a metric of the evaluation; got {name}{did_you_mean(name, found)} "
            f"(nearest: {close}; all are in result.json)"
        )
    return float(found[name])
