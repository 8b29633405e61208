"""Train and evaluate from Python; the command line calls the same functions."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pcdet_freeze.config import apply_overrides, load_cfg, plain
from pcdet_freeze.config.easy_dict import EasyDict
from pcdet_freeze.engine import build, launch
from pcdet_freeze.engine.checkpoint.io import epoch_of
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.data_check.at_start import check_at_start
from pcdet_freeze.engine.hooks.base import ConfiguredHook, Hook
from pcdet_freeze.engine.hooks.freeze import MultiTaskFreezeHook
from pcdet_freeze.engine.hooks.validation import evaluates_between
from pcdet_freeze.engine.run_context import EvalOptions, RunContext, TrainContext, TrainOptions
from pcdet_freeze.engine.run_session import resume_advice, run_session
from pcdet_freeze.engine.testing.evaluator import evaluate_all
from pcdet_freeze.engine.testing.scoring import check_metric
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.deferred_numbers import DeferredNumbers
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

Cfg = str | Path | Mapping[str, Any]
"""path of a YAML file, name of a packaged config, or a config that was read already"""
Overrides = Mapping[str, Any] | Sequence[str]
"""``{"OPTIMIZATION.LR": 0.01}``, or the words of ``--set``"""


@dataclass
class TrainResult:
    """What a training leaves."""

    model: nn.Module
    """the trained detector, without wrappers, on the training's device"""
    output_dir: Path
    """folder of the run: log, ``ckpt``, ``eval``, ``tensorboard``, ``run.json``"""
    checkpoint: Path | None
    """last checkpoint of the run"""
    metrics: dict[str, float]
    """metric name -> value of the last evaluation; empty without one"""
    losses: list[float]
    """loss of each iteration of this call"""
    freeze: FreezeHandle | None
    """handle of what MODEL.NOT_TRAIN_IN_MULTI_TASK froze: ``verify()``, ``certificate()``, ``release()``"""
    results: dict[str, Any]
    """``run.json``: iterations, seconds of an iteration, checks of the freeze"""

    @property
    def loss(self) -> float | None:
        """Loss of the last iteration; None where nothing was left to train."""
        return self.losses[-1] if self.losses else None


def train(
    cfg: Cfg,
    overrides: Overrides | None = None,
    *,
    pretrained: str | Path | None = None,
    output_dir: str | Path | None = None,
    **options: Any,
) -> TrainResult:
    """Train what ``MODEL.NOT_TRAIN_IN_MULTI_TASK`` does not freeze; the same as ``pcdet-freeze train``.

    A run that was interrupted resumes from its newest checkpoint when this is called again. Any number of
    trainings can run one after another in a process: random generators, torch flags, log handlers and
    process group are restored at the end.

    Args:
        cfg: path of a YAML file, name of a packaged config, or a config that was read already.
        overrides: config keys to change, ``{"OPTIMIZATION.LR": 0.01}``.
        pretrained: checkpoint whose tensors are loaded where name and shape fit.
        output_dir: folder for all runs, default ``output``; the run's own folder lies below it.
        options: fields of :class:`~pcdet_freeze.engine.run_context.TrainOptions`, which are the flags of
            the command: ``epochs=1``, ``max_iters=100``, ``extra_tag="stage2"``, ``workers=0``, ...

    Raises:
        PCDetFreezeError: anything that is wrong with config, data, checkpoint or freeze.
        KeyboardInterrupt: Ctrl-C; within the training loop after the step, when the checkpoint is written.
        StoppedBySignal: the same for SIGTERM, SIGUSR1 and the like; a SystemExit with code 128 + signal.
    """
    with run_session() as session:
        chosen = TrainOptions(pretrained_model=pretrained, output_dir=output_dir, **options)
        session.cfg = read_cfg(cfg, overrides)
        context = launch.start_training(session.cfg, chosen, session.closing)
        session.advice = partial(resume_advice, context)
        return _train(context)


class BuiltTraining(NamedTuple):
    """A training that has not begun."""

    trainer: Trainer
    hooks: list[ConfiguredHook]
    evaluation: build.Evaluation | None


def build_training(context: TrainContext) -> BuiltTraining:
    """Build and freeze. The freeze contract needs this order: no optimizer holds a frozen parameter.

    What reads frames comes last, so that a wrong flag, file or key is an error within seconds.
    """
    evaluates = context.options.num_epochs_to_eval > 0 or evaluates_between(context.cfg.OPTIMIZATION)
    if evaluates:
        check_metric(context.cfg)
    checkpoint = launch.find_checkpoint(context)
    launch.choose_seed(context, checkpoint)
    launch.start_trackers(context, checkpoint)
    train_data = build.build_data(context, training=True)
    evaluation = None
    if evaluates:
        evaluation = build.Evaluation(context, build.build_data(context, False), "eval_with_train")

    # build, SyncBN, pretrained tensors
    model = build.build_model(context, train_data.dataset, context.options.sync_bn)

    # freeze, then the resumed model state, then its certificate
    hooks = build.freeze_and_resume(context, model, checkpoint)

    # optimizer over what trains, its state, DDP
    trainer = build.build_trainer(context, model, train_data, evaluation, hooks, checkpoint)
    launch.require_trackers(context, trainer.iteration)
    context.columns.update(check_at_start(context, train_data.dataset))
    return BuiltTraining(trainer, hooks, evaluation)


def _train(context: TrainContext) -> TrainResult:
    trainer, hooks, evaluation = build_training(context)
    losses = _LossHistory()
    trainer.hooks.append(losses)
    _run(trainer, context)
    return _result(trainer, context, hooks, losses, evaluation.metrics if evaluation else {})


def _run(trainer: Trainer, context: TrainContext) -> None:
    logger, folder = context.logger, context.folders.root
    logger.info("**********************Start training %s**********************", folder)
    trainer.run()
    distributed.barrier()  # rank 0 writes run.json in the last hook, and every rank reads it
    logger.info("**********************End training %s**********************", folder)


def _result(
    trainer: Trainer,
    context: TrainContext,
    hooks: Sequence[ConfiguredHook],
    losses: _LossHistory,
    metrics: dict[str, float],
) -> TrainResult:
    checkpoint = context.folders.ckpt / f"checkpoint_epoch_{trainer.epoch_number}.pth"
    handles = [hook.handle for hook in hooks if isinstance(hook, MultiTaskFreezeHook)]
    summary = context.folders.root / "run.json"
    return TrainResult(
        model=distributed.unwrap(trainer.model),
        output_dir=context.folders.root,
        checkpoint=checkpoint if checkpoint.is_file() else None,
        metrics=metrics,
        losses=losses.values.values(),
        freeze=handles[0] if handles else None,
        results=json.loads(summary.read_text()) if summary.is_file() else {},
    )


@dataclass
class _LossHistory(Hook):
    """Keeps the loss of each iteration."""

    values: DeferredNumbers = field(default_factory=DeferredNumbers)

    def after_step(self, trainer: Trainer) -> None:
        self.values.append(trainer.loss_on_device)


def evaluate(
    cfg: Cfg,
    ckpt: str | Path | None = None,
    overrides: Overrides | None = None,
    *,
    pretrained: str | Path | None = None,
    output_dir: str | Path | None = None,
    **options: Any,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data of a config; returns metric name -> value.

    Args:
        cfg: as for :func:`train`.
        ckpt: checkpoint of this model.
        overrides: as for :func:`train`.
        pretrained: in place of ``ckpt``: a checkpoint of which only some tensors fit.
        output_dir: as for :func:`train`.
        options: fields of :class:`~pcdet_freeze.engine.run_context.EvalOptions`.

    Raises:
        PCDetFreezeError: no weights, or anything that is wrong with config, data or checkpoint.
    """
    with run_session() as session:
        chosen = EvalOptions(ckpt=ckpt, pretrained_model=pretrained, output_dir=output_dir, **options)
        session.advice = lambda: "No result was written: the same evaluation starts from the beginning."
        if not (chosen.ckpt or chosen.pretrained_model):
            raise ConfigError(
                "An evaluation needs weights: give --ckpt FILE, or --eval_all for all checkpoints of a run"
            )
        session.cfg = read_cfg(cfg, overrides)
        context = launch.start_evaluation(session.cfg, chosen, session.closing)
        state = {}
        if chosen.ckpt:
            state = trained_weights(load_checkpoint(chosen.ckpt, chosen.trust_checkpoint))
        model, evaluation = _build_evaluation(context, chosen, chosen.eval_tag)
        name: int | str = "pretrained"
        if chosen.ckpt:
            load_model_state(model, state, chosen.ckpt)
            number = epoch_of(Path(chosen.ckpt))
            name = number if number >= 0 else Path(chosen.ckpt).stem
        return evaluation(model, name)


def evaluate_run(
    cfg: Cfg, overrides: Overrides | None = None, *, pretrained: str | Path | None = None, **options: Any
) -> list[int]:
    """Evaluate every checkpoint of a run as it appears; returns the epochs that were evaluated.

    ``options`` are fields of :class:`~pcdet_freeze.engine.run_context.EvalOptions`.
    """
    with run_session() as session:
        chosen = EvalOptions(pretrained_model=pretrained, **options)
        session.advice = lambda: "Finished epochs are in eval_list.txt: the same evaluation skips them."
        if chosen.ckpt_dir and not Path(chosen.ckpt_dir).is_dir():
            raise ConfigError(f"--ckpt_dir must be a folder of checkpoints; {chosen.ckpt_dir} is none")
        session.cfg = read_cfg(cfg, overrides)
        context = launch.start_evaluation(session.cfg, chosen, session.closing)
        model, evaluation = _build_evaluation(context, chosen, ".")
        folders, logger = context.folders, context.logger
        evaluation.folder = f"eval_all_{chosen.eval_tag}"
        ckpt_dir = Path(chosen.ckpt_dir) if chosen.ckpt_dir else folders.ckpt
        return evaluate_all(
            model,
            evaluation,
            ckpt_dir,
            folders.eval / evaluation.folder,
            logger,
            start_epoch=chosen.start_epoch,
            max_waiting_mins=chosen.max_waiting_mins,
        )


def _build_evaluation(
    context: RunContext, options: EvalOptions, tag: str
) -> tuple[nn.Module, build.Evaluation]:
    data = build.build_data(context, training=False)
    model = build.build_model(context, data.dataset)
    return model, build.Evaluation(context, data, tag=tag, infer_time=options.infer_time)


def read_cfg(cfg: Cfg, overrides: Overrides | None = None) -> EasyDict:
    """Read ``cfg``, or copy it where it was read already, and change the keys of ``overrides``.

    Raises ConfigError as :func:`~pcdet_freeze.config.cfg_from_list` does, and for other types.
    """
    if isinstance(cfg, str | Path):
        read = load_cfg(cfg)
    elif not isinstance(cfg, Mapping):
        raise ConfigError(f"cfg must be a path, the name of a packaged config or a mapping; got {cfg!r}")
    else:
        read = copy.deepcopy(cfg) if isinstance(cfg, EasyDict) else EasyDict(cfg)
    words: Any = overrides or []
    if isinstance(overrides, Mapping):
        words = [word for key, value in overrides.items() for word in (key, _as_yaml(key, value))]
    is_list = isinstance(words, Sequence) and not isinstance(words, str)
    if not is_list or not all(isinstance(word, str) for word in words):
        raise ConfigError(
            "overrides must be a dict of dotted keys, such as {'OPTIMIZATION.LR': 0.01}, or a list of the "
            f"words of --set; got {overrides!r}"
        )
    apply_overrides(words, read)
    return read


def _as_yaml(key: str, value: Any) -> str:
    """``value`` as it would be typed behind ``--set KEY``: JSON, which YAML includes."""

    def scalar(other: Any) -> Any:
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        if hasattr(other, "item"):  # of numpy and torch
            return other.item()
        raise ConfigError(
            f"overrides must be plain values (numbers, strings, lists, dicts); got {other!r} for {key}"
        )

    return json.dumps(plain(value), default=scalar)
