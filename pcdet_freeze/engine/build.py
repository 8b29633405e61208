"""From flags to a trainer, in the one order that keeps the freeze contract.

build, SyncBN, load pretrained, read the checkpoint, freeze for the epoch in which it stands, load the resumed
model state, compare with the stored certificate, optimizer, its state, DDP.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcdet_freeze.config import cfg_from_args, plain
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.datasets.late_voxels import send_points
from pcdet_freeze.engine.arguments import idle_flags
from pcdet_freeze.engine.checkpoint.io import cfg_digest, load_checkpoint, newest_checkpoint
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state, load_pretrained
from pcdet_freeze.engine.hooks.base import ConfiguredHook, Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook, TimedCheckpointHook
from pcdet_freeze.engine.hooks.evaluation import EvaluationHook
from pcdet_freeze.engine.hooks.freeze_checks import OptimizerGroupsHook
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg
from pcdet_freeze.engine.hooks.logging import LogHook, ProgressHook, SummaryHook, TensorboardHook
from pcdet_freeze.engine.hooks.max_iters import MaxItersHook
from pcdet_freeze.engine.hooks.task_gradients import TaskGradientHook
from pcdet_freeze.engine.logger import create_logger, log_config, log_environment, log_name
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.optim.settings import SECTIONS, check_optimization
from pcdet_freeze.engine.run_context import FIXED_SEED, Checkpoint, Data, Run, move_with, run_folders
from pcdet_freeze.engine.testing.evaluator import eval_one_epoch
from pcdet_freeze.engine.testing.scoring import check_metric
from pcdet_freeze.engine.trainer import Trainer, clip_norm_of
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.freezing import FreezePlan, is_frozen
from pcdet_freeze.freezing.checkpoint_meta import CHECKPOINT_KEY, FreezeMetadata, log_list_changes
from pcdet_freeze.freezing.module_graph import stages, training_steps
from pcdet_freeze.freezing.paths import is_within, match
from pcdet_freeze.models import build_network
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_seed


def start_run(args: argparse.Namespace, kind: str) -> Run:
    """Read the config, join the other processes, open the log; ``kind`` is 'train' or 'eval'."""
    cfg = cfg_from_args(args, SECTIONS)
    if kind == "train":
        check_optimization(cfg.OPTIMIZATION)
    world = distributed.start(args.launcher, args.tcp_port, args.device)
    device = distributed.pick_device(args.device, world)
    folders = run_folders(args.cfg_file, args.extra_tag, args.output_dir)
    try:
        logger = create_logger(folders.root / log_name(kind), world.rank)
    except OSError as error:
        raise ConfigError(f"--output_dir must be a folder to write to; {folders.root}: {error}") from error
    log_environment(logger, device, world.size)
    log_config(logger, {key: value for key, value in vars(args).items() if key != "cfg"}, cfg)
    for line in idle_flags(args) if kind == "train" else ():
        logger.info("%s", line)
    FreezePlan.from_cfg(cfg)  # its faults are told before any data is read
    if kind == "train" and world.is_main:
        shutil.copy(args.cfg_file, folders.root)
    return Run(args, cfg, world, device, folders, logger)


def find_checkpoint(run: Run) -> Checkpoint | None:
    """The checkpoint to go on from: ``--ckpt``, else the newest valid one of this run, else None."""
    if run.args.ckpt is not None:
        state = load_checkpoint(run.args.ckpt, run.args.trust_checkpoint)
        found: Checkpoint | None = (Path(run.args.ckpt), state)
    else:
        found = newest_checkpoint(run.folders.ckpt, run.logger)
    if found is not None:
        run.logger.info(
            "Resume from %s: epoch %s, iteration %s", found[0], found[1].get("epoch"), found[1].get("it")
        )
    return found


def choose_seed(run: Run, checkpoint: Checkpoint | None) -> None:
    """Seed this process; a resumed run keeps its seed, and with it the order of the data."""
    ours = checkpoint[1].get(CHECKPOINT_KEY, {}) if checkpoint else {}
    fresh = FIXED_SEED if run.args.fix_random_seed else random.SystemRandom().randrange(2**31)
    run.seed = distributed.from_main(int(ours.get("seed", fresh)))
    if run.args.fix_random_seed:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    set_seed(run.seed)
    run.logger.info("Random seed %d", run.seed)


def build_data(run: Run, training: bool) -> Data:
    """The training or the test data of the config."""
    if not training:
        check_metric(run.cfg)  # an evaluation may be an epoch away
    parts = build_dataloader(
        run.cfg.DATA_CONFIG,
        run.cfg.CLASS_NAMES,
        run.batch_size,
        training=training,
        workers=run.args.workers,
        logger=run.logger,
        seed=run.seed,
        rank=run.world.rank,
        world_size=run.world.size,
    )
    run.logger.info("%s: %d frames", "Training data" if training else "Test data", len(parts[0]))
    data = Data(*parts)
    if training and (run.device.type == "cuda" or run.args.workers > 0):
        data.move = move_with(send_points(data.loader))
    return data


def new_model(run: Run, dataset: Any) -> nn.Module:
    """The detector of the config, as it is initialised."""
    return build_network(model_cfg=run.cfg.MODEL, num_class=len(run.cfg.CLASS_NAMES), dataset=dataset)


def build_model(run: Run, dataset: Any) -> nn.Module:
    """The detector on its device, with SyncBN where asked for and the pretrained tensors loaded."""
    model = new_model(run, dataset)
    if getattr(run.args, "sync_bn", False):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if run.args.pretrained_model is not None:
        run.loaded = load_pretrained(
            model,
            run.args.pretrained_model,
            run.logger,
            allow_mismatch=run.args.allow_mismatch,
            trust=run.args.trust_checkpoint,
        ).loaded
    count = sum(parameter.numel() for parameter in model.parameters())
    run.logger.info("----------- Model %s created, param count: %d -----------", run.cfg.MODEL.NAME, count)
    return model.to(run.device)


def freeze_and_resume(run: Run, model: nn.Module, checkpoint: Checkpoint | None) -> list[ConfiguredHook]:
    """Freeze for the epoch in which the run stands, then load its state and compare with its certificate."""
    header, plan = FreezeMetadata.of(checkpoint[1] if checkpoint else None), FreezePlan.from_cfg(run.cfg)
    if checkpoint is not None:
        log_list_changes(header, plan, run.is_over(checkpoint[1]), checkpoint[0], run.logger)
    hooks = hooks_from_cfg(run.cfg, model, header.begun, run.epochs)
    for line in filter(None, (hook.describe() for hook in hooks)):
        run.logger.info("%s", line)
    if not hooks:
        run.logger.info("MODEL.NOT_TRAIN_IN_MULTI_TASK names nothing: nothing is frozen.")
    if getattr(run.args, "sync_bn", False):
        check_sync_bn(model, run.device, plan)
    if checkpoint is not None:
        if run.args.pretrained_model is not None:
            run.logger.info("--pretrained_model has no effect: the state of %s replaces it", checkpoint[0])
        load_model_state(model, checkpoint[1]["model_state"], checkpoint[0])
        for hook in hooks:
            hook.check_resumed(checkpoint[1].get(CHECKPOINT_KEY, {}))
    return hooks


def build_trainer(
    run: Run,
    model: nn.Module,
    train: Data,
    test: Data | None,
    hooks: Sequence[ConfiguredHook],
    checkpoint: Checkpoint | None,
) -> Trainer:
    """A trainer that stands where ``checkpoint`` left off, or at the start."""
    require_labels(model, train.dataset)
    for hook in hooks:
        if checkpoint is None:
            hook.check_pretrained_coverage(run.loaded, lambda: new_model(run, train.dataset))
        if test is not None:
            hook.take_test_data(test.loader)
    optim_cfg, steps = run.cfg.OPTIMIZATION, run.args.max_iters
    length = len(train.loader)
    epochs = run.epochs or -(-steps // length)
    optimizer = build_optimizer(model, optim_cfg, [part for hook in hooks for part in hook.apart()])
    trainer = Trainer(
        model,
        optimizer,
        build_scheduler(optimizer, steps or epochs * length, length, optim_cfg),
        train.loader,
        epochs=epochs,
        hooks=[*builtin_hooks(run, test), *hooks, SummaryHook(run.folders.root / "run.json")],
        sampler=train.sampler,
        device=run.device,
        clip_norm=clip_norm_of(optim_cfg),
        use_amp=run.args.use_amp or optim_cfg.get("USE_AMP", False),
        move=train.move,
        logger=run.logger,
    )
    set_seed(run.seed + run.world.rank)
    if checkpoint is not None:
        _note_changes(run, checkpoint[1].get(CHECKPOINT_KEY))
        resume(trainer, checkpoint[1])
    trainer.rebuild(optimizer)
    return trainer


def _note_changes(run: Run, ours: Mapping[str, Any] | None) -> None:
    if ours is None:
        run.logger.warning(
            "The checkpoint stores no generators and no data order: this resume is not bit-exact."
        )
    elif ours.get("cfg_digest") != cfg_digest(plain(run.cfg)):
        run.logger.warning("The config is not the one that the checkpoint was written with.")


def builtin_hooks(run: Run, test: Data | None) -> list[Hook]:
    """What every training does besides training, in order."""
    args, extra = run.args, {"seed": run.seed, "cfg_digest": cfg_digest(plain(run.cfg))}
    ckpt = run.folders.ckpt
    first: list[Hook] = [MaxItersHook(args.max_iters)] if args.max_iters else []
    last: list[Hook] = []
    if test is not None:
        evaluate = Evaluation(run, test, "eval_with_train")
        last = [EvaluationHook(evaluate, ckpt, args.num_epochs_to_eval, args.start_epoch)]
    return [
        *first,
        TaskGradientHook(args.logger_iter_interval),
        LogHook(args.logger_iter_interval),
        TensorboardHook(run.folders.tensorboard),
        ProgressHook(),
        OptimizerGroupsHook(),
        CheckpointHook(ckpt, args.ckpt_save_interval, args.max_ckpt_save_num, extra),
        TimedCheckpointHook(ckpt, args.ckpt_save_time_interval, extra),
        *last,
    ]


@dataclass
class Evaluation:
    """Evaluates a model of epoch N into ``eval/<folder>/epoch_N/<split>[/<tag>]``."""

    run: Run
    data: Data
    folder: str = "."
    tag: str = "."

    def __call__(self, model: nn.Module, epoch: int | str) -> dict[str, float]:
        run = self.run
        split = str((run.cfg.DATA_CONFIG.get("DATA_SPLIT") or {}).get("test", "test"))
        return eval_one_epoch(
            run.cfg,
            model,
            self.data.loader,
            epoch,
            run.logger,
            dist_test=run.world.size > 1,
            result_dir=run.folders.eval / self.folder / f"epoch_{epoch}" / split / self.tag,
            save_to_file=run.args.save_to_file,
            infer_time=getattr(run.args, "infer_time", False),
        )


def check_sync_bn(model: nn.Module, device: torch.device, plan: FreezePlan) -> None:
    """Raise ConfigError where torch cannot run the SyncBatchNorm layers of ``model`` on ``device``.

    On a CPU that is a layer that trains, now or later in the schedule. In several processes it is any layer:
    DistributedDataParallel refuses a model with SyncBatchNorm on a CPU, frozen or not.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    freed = [path for phase in plan.schedule for name in phase.train for path in match(model, name).paths]
    live = [n for n, m in norms.items() if not is_frozen(m) or any(is_within(n, path) for path in freed)]
    if live and device.type != "cuda":
        raise ConfigError(
            f"--sync_bn needs CUDA for every norm layer that is not frozen to the end, but the device is "
            f"{device} and {len(live)} are live: {', '.join(live[:4])}. Leave --sync_bn out, or freeze them."
        )
    if norms and device.type != "cuda" and distributed.is_distributed():
        raise ConfigError(
            f"--sync_bn needs CUDA in a run of several processes; got device {device} and "
            f"{distributed.world_size()} processes. All {len(norms)} norm layers are frozen and use their "
            "running statistics, which need no synchronisation: leave --sync_bn out, the result is the same."
        )


def require_labels(model: nn.Module, dataset: Any) -> None:
    """Raise one DataError for all heads that give a loss but whose label no frame of ``dataset`` has.

    A head's labels are its ``reads_train``, less what modules write; what the data set can give is its
    ``labels``. Frozen heads need none. Either of the two may be undeclared: then nothing is asked.
    """
    given = getattr(dataset, "labels", None)
    if given is None:
        return
    steps, parts = training_steps(model), stages(model)
    there = {*given, *(key for part in parts for key in part.writes)}
    lacking = {
        part.name: missing
        for part in parts
        if part.has_loss and steps[part.name].loss and (missing := sorted(part.reads_train - there))
    }
    if lacking:
        needs = "; ".join(f"{head} learns from {', '.join(keys)}" for head, keys in lacking.items())
        raise DataError(
            f"A task needs labels in some frame, but {type(dataset).__name__} has only "
            f"{', '.join(given) or 'none'}: {needs}. Add the labels (docs/labels.md; those of a task of your "
            "own to the data set's `labels`), or name the head in MODEL.NOT_TRAIN_IN_MULTI_TASK"
        )
