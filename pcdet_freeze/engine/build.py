"""From options to a trainer, in the one order that keeps the freeze contract.

build, SyncBN, load pretrained, read the checkpoint, freeze for the epoch in which it stands, load the resumed
model state, compare with the stored certificate, optimizer, its state, DDP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pcdet_freeze.config import plain
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.datasets.late_voxels import send_points
from pcdet_freeze.engine.checkpoint.io import cfg_digest
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state, load_pretrained
from pcdet_freeze.engine.data_check.at_start import DataColumnsHook
from pcdet_freeze.engine.finite_guard import FiniteGuard
from pcdet_freeze.engine.hooks.bad_data import BadDataHook
from pcdet_freeze.engine.hooks.base import ConfiguredHook, Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook, TimedCheckpointHook
from pcdet_freeze.engine.hooks.ema import EmaHook
from pcdet_freeze.engine.hooks.evaluation import EvaluationHook
from pcdet_freeze.engine.hooks.freeze import MultiTaskFreezeHook
from pcdet_freeze.engine.hooks.freeze_checks import OptimizerGroupsHook
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg, user_hooks
from pcdet_freeze.engine.hooks.logging import LogHook, ProgressHook, SummaryHook, TensorboardHook
from pcdet_freeze.engine.hooks.report import ReportHook
from pcdet_freeze.engine.hooks.savings import SavingsHook
from pcdet_freeze.engine.hooks.stop_signal import StopBeforeEvaluationHook, StopHook
from pcdet_freeze.engine.hooks.task_gradients import TaskGradientHook
from pcdet_freeze.engine.hooks.tracking import LastEventsHook
from pcdet_freeze.engine.hooks.validation import ValidationHook, validation_settings
from pcdet_freeze.engine.hooks.validation_loss import ValidationLossHook
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.required_labels import require_labels as require_labels
from pcdet_freeze.engine.run_context import (
    Checkpoint,
    Data,
    RunContext,
    TrainContext,
    move_with,
)
from pcdet_freeze.engine.slurm import requeue_after
from pcdet_freeze.engine.testing.evaluation import Evaluation as Evaluation
from pcdet_freeze.engine.testing.scoring import check_metric
from pcdet_freeze.engine.trainer import Trainer, clip_norm_of
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan, is_frozen
from pcdet_freeze.freezing.entries.paths import is_within, match
from pcdet_freeze.freezing.lr_scale import describe_lr_scale, lr_scaled_groups
from pcdet_freeze.freezing.verification.checkpoint_meta import (
    CHECKPOINT_KEY,
    FreezeMetadata,
    log_list_changes,
)
from pcdet_freeze.models import build_network
from pcdet_freeze.ops.maps.map_layout import train_channels_last
from pcdet_freeze.utils.devices import is_accelerator
from pcdet_freeze.utils.rng import set_seed


def build_data(context: RunContext, training: bool) -> Data:
    """The training or the test data of the config."""
    if not training:
        check_metric(context.cfg)  # an evaluation may be an epoch away
    parts = build_dataloader(
        context.cfg.DATA_CONFIG,
        context.cfg.CLASS_NAMES,
        context.batch_size,
        training=training,
        workers=context.options.workers,
        logger=context.logger,
        seed=context.seed,
        rank=context.world.rank,
        world_size=context.world.size,
    )
    if not training:
        parts[0].check_evaluation()
    context.logger.info("%s: %d frames", "Training data" if training else "Test data", len(parts[0]))
    data = Data(*parts)
    if training and (is_accelerator(context.device) or context.options.workers > 0):
        data.move = move_with(send_points(data.loader))
    return data


def new_model(context: RunContext, dataset: Any) -> nn.Module:
    """The detector of the config, with initial weights."""
    return build_network(model_cfg=context.cfg.MODEL, num_class=len(context.cfg.CLASS_NAMES), dataset=dataset)


def build_model(context: RunContext, dataset: Any, sync_bn: bool = False) -> nn.Module:
    """The detector on its device, with SyncBN if ``sync_bn``, and the pretrained tensors loaded."""
    model = new_model(context, dataset)
    train_channels_last(model.modules())
    if sync_bn:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if context.options.pretrained_model is not None:
        context.loaded = load_pretrained(
            model,
            context.options.pretrained_model,
            context.logger,
            allow_mismatch=context.options.allow_mismatch,
            trust=context.options.trust_checkpoint,
            checkpoint=context.pretrained,
        ).loaded
        context.pretrained = None  # frees its optimizer state
    count = sum(parameter.numel() for parameter in model.parameters())
    context.logger.info(
        "----------- Model %s created, param count: %d -----------", context.cfg.MODEL.NAME, count
    )
    return model.to(context.device)


def freeze_and_resume(
    context: TrainContext, model: nn.Module, checkpoint: Checkpoint | None
) -> list[ConfiguredHook]:
    """Freeze for the current epoch, then load the resumed state and compare it with its certificate."""
    header, plan = FreezeMetadata.of(checkpoint[1] if checkpoint else None), context.plan
    if checkpoint is not None:
        log_list_changes(header, plan, context.is_over(checkpoint[1]), checkpoint[0], context.logger)
    hooks = hooks_from_cfg(context.cfg, model, header.begun, context.epochs, plan)
    if context.options.no_savings:
        hooks = [hook for hook in hooks if not isinstance(hook, SavingsHook)]
    for line in filter(None, (hook.describe() for hook in hooks)):
        context.logger.info("%s", line)
    if not hooks:
        context.logger.info("MODEL.NOT_TRAIN_IN_MULTI_TASK is empty: nothing is frozen.")
    if context.options.sync_bn:
        check_sync_bn(model, context.device, plan, context.world.size)
    if checkpoint is not None:
        if context.options.pretrained_model is not None:
            context.logger.info(
                "--pretrained_model has no effect: the state of %s replaces it", checkpoint[0]
            )
        load_model_state(model, checkpoint[1]["model_state"], checkpoint[0])
        for hook in hooks:
            hook.check_resumed(checkpoint[1].get(CHECKPOINT_KEY, {}))
    return hooks


def build_trainer(
    context: TrainContext,
    model: nn.Module,
    train: Data,
    evaluation: Evaluation | None,
    hooks: Sequence[ConfiguredHook],
    checkpoint: Checkpoint | None,
) -> Trainer:
    """A trainer at the position of ``checkpoint``, or at the start."""
    require_labels(model, train.dataset)
    for hook in hooks:
        if checkpoint is None:
            hook.check_pretrained_coverage(context.loaded, lambda: new_model(context, train.dataset))
        if evaluation is not None:
            hook.take_test_data(evaluation.data.loader)
    optim_cfg, steps = context.cfg.OPTIMIZATION, context.options.max_iters
    accumulate = int(optim_cfg.get("ACCUMULATE", 1))
    length = math.ceil(len(train.loader) / accumulate)
    epochs = context.epochs or math.ceil((steps or 0) / length)
    groups = [part for hook in hooks for part in hook.lr_scaled_groups()]
    optimizer = build_optimizer(model, optim_cfg, [*groups, *lr_scaled_groups(context.plan, model)])
    for line in describe_lr_scale(context.plan, model):
        context.logger.info("%s", line)
    owner = next((hook for hook in hooks if isinstance(hook, MultiTaskFreezeHook)), None)
    builtin = builtin_hooks(context, evaluation)
    events = next(hook.events for hook in builtin if isinstance(hook, TensorboardHook))
    report = ReportHook(context, evaluation, owner)
    trainer = Trainer(
        model,
        optimizer,
        build_scheduler(optimizer, steps or epochs * length, length, optim_cfg),
        train.loader,
        epochs=epochs,
        max_iters=steps,
        hooks=[
            *builtin,
            *hooks,
            *user_hooks(context.cfg),
            SummaryHook(context.folders.root / "run.json"),
            report,
            LastEventsHook(events, report, context.folders, owner),
        ],
        sampler=train.sampler,
        device=context.device,
        clip_norm=clip_norm_of(optim_cfg),
        use_amp=context.options.use_amp or optim_cfg.get("USE_AMP", False),
        move=train.move,
        accumulate=accumulate,
        guard=FiniteGuard.from_cfg(optim_cfg),
        logger=context.logger,
    )
    set_seed(context.seed + context.world.rank)
    if checkpoint is not None:
        _note_changes(context, checkpoint[1].get(CHECKPOINT_KEY))
        resume(trainer, checkpoint[1])
    trainer.rebuild(optimizer)
    return trainer


def _note_changes(context: TrainContext, ours: Mapping[str, Any] | None) -> None:
    if ours is None:
        context.logger.warning(
            "The checkpoint stores no generators and no data order: this resume is not bit-exact."
        )
    elif ours.get("cfg_digest") != cfg_digest(plain(context.cfg)):
        context.logger.warning("The config is not the one that the checkpoint was written with.")


def builtin_hooks(context: TrainContext, evaluation: Evaluation | None) -> list[Hook]:
    """Hooks of every training, in order."""
    options, extra = context.options, {"seed": context.seed, "cfg_digest": cfg_digest(plain(context.cfg))}
    ckpt = context.folders.ckpt
    every = context.cfg.OPTIMIZATION.get("TASK_GRADIENTS", 0)
    tensorboard = TensorboardHook(context.folders.tensorboard, context.trackers, keep_open=True)
    first: list[Hook] = [tensorboard, *([TaskGradientHook(every)] if every else [])]
    if decay := context.cfg.OPTIMIZATION.get("EMA"):
        first.append(EmaHook(decay))
    last: list[Hook] = []
    if evaluation is not None:
        evaluation.on_result = tensorboard.events.evaluation
        if epochs := context.cfg.OPTIMIZATION.get("VALIDATION_LOSS", 0):
            first.append(ValidationLossHook(evaluation.data, epochs, tensorboard.events))
        settings = validation_settings(context.cfg.OPTIMIZATION)
        first += [ValidationHook(evaluation, ckpt, *settings, extra)] if settings is not None else []
        last = [EvaluationHook(evaluation, ckpt, options.num_epochs_to_eval, options.start_epoch)]
    requeue = partial(requeue_after, logger=context.logger) if options.requeue else None
    stop = StopHook(ckpt, extra, context.agreement, requeue)
    return [
        stop,
        *first,
        LogHook(options.logger_iter_interval),
        BadDataHook(),
        DataColumnsHook(context.columns),
        ProgressHook(),
        OptimizerGroupsHook(),
        CheckpointHook(ckpt, options.ckpt_save_interval, options.max_ckpt_save_num, extra),
        TimedCheckpointHook(ckpt, options.ckpt_save_time_interval, extra),
        StopBeforeEvaluationHook(stop),
        *last,
    ]


def check_sync_bn(model: nn.Module, device: torch.device, plan: FreezePlan, processes: int = 1) -> None:
    """Raise ConfigError if torch does not support the SyncBatchNorm layers of ``model`` on a CPU.

    On a CPU a layer must not train, now or later in the schedule, and DistributedDataParallel refuses even a
    frozen one.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    if device.type == "cuda" or not norms:
        return
    if processes > 1:
        raise ConfigError(
            f"--sync_bn needs CUDA with several processes, for frozen norm layers too, but the device of the "
            f"{processes} processes is {device}. Leave --sync_bn out."
        )
    freed = [path for phase in plan.schedule for name in phase.train for path in match(model, name).paths]
    live = [n for n, m in norms.items() if not is_frozen(m) or any(is_within(n, path) for path in freed)]
    if live:
        raise ConfigError(
            f"--sync_bn needs CUDA for every norm layer that is not frozen in all epochs, but the device is "
            f"{device} and {len(live)} are trainable: {', '.join(live[:4])}. Leave --sync_bn out, or freeze "
            "them."
        )
