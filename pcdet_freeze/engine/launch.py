"""Start a run: check the config, join the other processes, open the log, find the checkpoint, seed."""

from __future__ import annotations

import logging
import random
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from pcdet_freeze import __version__
from pcdet_freeze.config import plain
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint, remove_unfinished
from pcdet_freeze.engine.logger import create_logger, log_config, log_environment, log_name
from pcdet_freeze.engine.ranks.monitor import RankMonitor
from pcdet_freeze.engine.ranks.stop_agreement import StopAgreement
from pcdet_freeze.engine.run_context import (
    FIXED_SEED,
    Checkpoint,
    EvalOptions,
    RunContext,
    RunFolders,
    RunOptions,
    TrainContext,
    TrainOptions,
    file_of,
    folders_of,
)
from pcdet_freeze.engine.run_lock import run_lock
from pcdet_freeze.engine.testing.scoring import check_metric
from pcdet_freeze.engine.tracking.process import Trackers
from pcdet_freeze.engine.tracking.settings import tracker_names
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.allocator import SWITCH, keep_freed_memory
from pcdet_freeze.utils.distributed import World
from pcdet_freeze.utils.output_files import writing
from pcdet_freeze.utils.rng import set_seed
from pcdet_freeze.utils.signals.stop_signals import StopSignals
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

PROJECT = "pcdet_freeze"
"""of wandb, and experiment of MLflow, where the environment names none"""


def start_training(cfg: Any, options: TrainOptions, closing: ExitStack) -> TrainContext:
    """Check the config, join the other processes, lock the run's folder, open the log, copy the config.

    ``closing`` gets what must be closed when the run ends.
    """
    plan, trackers = check_config(cfg), tracker_names(cfg, options.tracker)
    world, device, folders = _join(cfg, options)
    distributed.main_only(lambda: _lock(folders, closing))
    logger = _open_log(cfg, options, world, device, folders, "train")
    context = TrainContext(options, cfg, world, device, folders, logger, plan)
    if world.is_main:
        context.trackers = Trackers(trackers, logger)
        closing.push(context.trackers)  # below the watch of the ranks: others may end while files are sent
    context.pretrained = _read_pretrained(options)
    context.agreement = _watch_ranks(context, closing)
    for line in options.notes:
        logger.info("%s", line)
    distributed.main_only(lambda: _copy_config(cfg, folders.root))
    if world.is_main:
        remove_unfinished(folders.ckpt, logger)
    return context


def start_evaluation(cfg: Any, options: EvalOptions, closing: ExitStack) -> RunContext:
    """Check the config, join the other processes, open the log."""
    plan = check_config(cfg, training=False)
    world, device, folders = _join(cfg, options)
    check_metric(cfg)
    logger = _open_log(cfg, options, world, device, folders, "eval")
    context = RunContext(options, cfg, world, device, folders, logger, plan)
    context.pretrained = _read_pretrained(options)
    _watch_ranks(context, closing)
    return context


def _join(cfg: Any, options: RunOptions) -> tuple[World, torch.device, RunFolders]:
    world = distributed.start(options.launcher, options.tcp_port, options.device, options.timeout)
    return world, distributed.pick_device(options.device, world), folders_of(cfg, options)


def _lock(folders: RunFolders, closing: ExitStack) -> None:
    try:
        closing.enter_context(run_lock(folders.root))
    except OSError as error:
        raise ConfigError(f"--output_dir must be a folder to write to; {folders.root}: {error}") from error


def _open_log(
    cfg: Any, options: RunOptions, world: World, device: torch.device, folders: RunFolders, kind: str
) -> logging.Logger:
    try:
        logger = create_logger(folders.root / log_name(kind), world.rank)
    except OSError as error:
        raise ConfigError(f"--output_dir must be a folder to write to; {folders.root}: {error}") from error
    log_environment(logger, device, world.size)
    if keep_freed_memory():
        logger.info("Freed memory stays in the process for the next step (%s=0 turns this off)", SWITCH)
    flags = {name: value for name, value in asdict(options).items() if name != "notes"}
    log_config(logger, {"cfg_file": file_of(cfg), **flags}, cfg)
    return logger


def _read_pretrained(options: RunOptions) -> dict[str, Any] | None:
    """The file of ``--pretrained_model``, read before any data: a wrong path must not cost minutes."""
    if options.pretrained_model is None:
        return None
    return load_checkpoint(options.pretrained_model, options.trust_checkpoint)


def _watch_ranks(context: RunContext, closing: ExitStack) -> StopAgreement | None:
    """With several ranks: notice those that hang or end, and torchrun's own end."""
    if distributed.world_size() == 1:
        return None
    monitor = RankMonitor(StopSignals(), context.options.timeout, context.logger)
    closing.callback(monitor.close)
    return monitor.agreement


def _copy_config(cfg: Any, folder: Path) -> None:
    with writing(folder):
        if (file := file_of(cfg)) is not None:
            shutil.copy(file, folder)
        else:
            (folder / "config.yaml").write_text(yaml.safe_dump(plain(cfg), sort_keys=False))


def find_checkpoint(context: TrainContext) -> Checkpoint | None:
    """The checkpoint to resume from: ``ckpt``, else the newest valid one of this run, else None."""
    if context.options.ckpt is not None:
        state = load_checkpoint(context.options.ckpt, context.options.trust_checkpoint)
        found: Checkpoint | None = (Path(context.options.ckpt), state)
    else:
        found = newest_checkpoint(context.folders.ckpt, context.logger)
    if found is not None:
        context.logger.info(
            "Resume from %s: epoch %s, iteration %s", found[0], found[1].get("epoch"), found[1].get("it")
        )
    return found


def choose_seed(context: TrainContext, checkpoint: Checkpoint | None) -> None:
    """Seed this process; a resumed run keeps its seed, and with it the order of the data."""
    ours = checkpoint[1].get(CHECKPOINT_KEY, {}) if checkpoint else {}
    fresh = FIXED_SEED if context.options.fix_random_seed else random.SystemRandom().randrange(2**31)
    context.seed = distributed.from_main(int(ours.get("seed", fresh)))
    if context.options.fix_random_seed:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    set_seed(context.seed)
    context.logger.info("Random seed %d", context.seed)


def start_trackers(context: TrainContext, checkpoint: Checkpoint | None) -> None:
    """Start the run's trackers, on rank 0; they start while data and model are built."""
    if not context.trackers:
        return
    root, options = context.folders.root, context.options
    output = Path(options.output_dir or "output")
    above = root.parent.resolve()
    group = above.relative_to(output.resolve()) if above.is_relative_to(output.resolve()) else above
    facts = {
        "seed": context.seed, "pcdet_freeze": __version__, "torch": torch.__version__,
        "device": str(context.device), "ranks": context.world.size, "pretrained": options.pretrained_model,
        "not_train": list(context.plan.entries),
    }  # fmt: skip
    described = {"project": PROJECT, "name": options.extra_tag, "group": group.as_posix()}
    resumed = checkpoint is not None and int(checkpoint[1].get("it") or 0) > 0
    store = str((output / "mlruns").resolve())
    config = {**plain(context.cfg), "run": facts}
    context.trackers.start(root, resumed, {**described, "config": config, "store": store})


def require_trackers(context: TrainContext, iteration: int) -> None:
    """Raise ConfigError on all ranks where a new run cannot have its trackers; a resumed one goes on."""
    # the other ranks wait for no longer than --timeout
    found = context.trackers.refusals(context.options.timeout / 2) if iteration == 0 else []
    refusals = distributed.from_main(found)
    if refusals:
        raise ConfigError(
            f"OPTIMIZATION.TRACKER, or --tracker, needs trackers that can begin a run; "
            f"{'; '.join(refusals)}. Log in (`wandb login`, MLFLOW_TRACKING_URI), work offline "
            "(WANDB_MODE=offline), or leave the tracker out (--tracker none)."
        )
