"""Toy runs under a freeze list, started and resumed in the order of tools/train.py, with its own code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from engine_toy import OPTIM, ToyModel, toy_trainer

from pcdet_freeze.engine.build import freeze_and_resume
from pcdet_freeze.engine.checkpoint.io import checkpoint_state, save_checkpoint
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.run_context import TrainContext, TrainOptions
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.lr_scale import lr_scaled_groups
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.distributed import World
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


class SaveEach(Hook):
    """A checkpoint after each iteration, and at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_step(self, trainer: Trainer) -> None:
        self._save(trainer, f"it{trainer.iteration}")

    def after_epoch(self, trainer: Trainer) -> None:
        self._save(trainer, f"epoch{trainer.epoch}")

    def _save(self, trainer: Trainer, name: str) -> None:
        state = checkpoint_state(trainer)  # every rank takes part
        if distributed.rank() == 0:
            save_checkpoint(state, self.folder / f"{name}.pth")
        distributed.barrier()


def cfg_of(*entries: str, **options: Any) -> dict[str, Any]:
    block = {"FREEZE": options} if options else {}
    return {"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": list(entries), **block}}


def phase(epoch: int, *train: str, **more: Any) -> dict[str, Any]:
    return {"EPOCH": epoch, "TRAIN": list(train), **more}


def frozen_trainer(
    hooks: Any = (),
    cfg: Any = None,
    *,
    path: Path | None = None,
    model: Any = None,
    epochs: int = 2,
    optimizer: str = "adam_onecycle",
    seed: int = 0,
    **more: Any,
) -> Trainer:
    """A run from its start, or from the checkpoint at ``path``."""
    cfg = {**(cfg or cfg_of("vfe")), "OPTIMIZATION": {**OPTIM, "OPTIMIZER": optimizer, "NUM_EPOCHS": epochs}}
    torch.manual_seed(7 + seed)
    model = model or ToyModel()
    logger = logging.getLogger("pcdet_freeze")
    options = TrainOptions(epochs=epochs)
    plan, where = FreezePlan.from_cfg(cfg), (World(), torch.device("cpu"), None)
    context = TrainContext(options, cfg, *where, logger, plan)  # type: ignore[arg-type]
    checkpoint = None if path is None else (path, load_checkpoint(path))
    made = freeze_and_resume(context, model, checkpoint)
    groups = [part for hook in made for part in hook.lr_scaled_groups()] + lr_scaled_groups(plan, model)
    trainer = toy_trainer(
        [*hooks, *made], model=model, epochs=epochs, optimizer=optimizer, seed=seed, lr_scaled=groups, **more
    )
    if checkpoint is not None:
        resume(trainer, checkpoint[1])
    return trainer


def resumed(path: Path, cfg: Any = None, hooks: Any = (), **more: Any) -> Trainer:
    """Other initial weights and generators than the run in ``path``."""
    return frozen_trainer(hooks, cfg, path=path, **{"seed": 99, **more})
