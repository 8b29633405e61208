"""Trainings of a small PointPillar with FREEZE.CACHE, on six random scenes whose points are shuffled."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from bench_toys import small_cfg
from torch.utils.data import DataLoader

from pcdet_freeze.bench import RandomScenes
from pcdet_freeze.datasets.loader import EpochSampler
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg
from pcdet_freeze.engine.hooks.frozen_prefix import FrozenPrefixHook
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.prefix_cache import PrefixCache
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.models import build_network, load_data_to_gpu
from pcdet_freeze.utils.rng import set_seed

BLOCKS = ("vfe", "backbone_2d.blocks")


class SixScenes(RandomScenes):
    """Frames 0 to 5."""

    def __len__(self) -> int:
        return 6


def cfg_with(cache: Any, *entries: str, **options: Any) -> Any:
    """The small config that freezes ``entries``; ``cache`` stands under FREEZE.CACHE."""
    cfg = small_cfg()
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = list(entries or BLOCKS)
    cfg.MODEL.FREEZE = {"ALLOW_RANDOM": True, "CACHE": cache, **options}
    return cfg


def keep(folder: Path, variants: int | None = 2, **more: Any) -> dict[str, Any]:
    return {"FOLDER": str(folder), "VARIANTS": variants, **more}


def trainer_of(
    cfg: Any,
    hooks: Any = (),
    *,
    epochs: int = 3,
    max_iters: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    rank: int = 0,
    world: int = 1,
) -> Trainer:
    """Three iterations an epoch in one process. ``draws``: so many variants without a cache."""
    set_seed(7 + seed)
    data = SixScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES)
    if draws is not None:
        data.keep_variants(draws)
    sampler = EpochSampler(data, 2, shuffle=True, rank=rank, world_size=world)
    loader = DataLoader(data, batch_size=2, sampler=sampler, collate_fn=data.collate_batch)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data).to(device)
    made = hooks_from_cfg(cfg, model, 0, epochs)
    optimizer = build_optimizer(model, cfg.OPTIMIZATION)
    return Trainer(
        model,
        optimizer,
        build_scheduler(optimizer, epochs * len(loader), len(loader), cfg.OPTIMIZATION),
        loader,
        epochs=epochs,
        max_iters=max_iters,
        hooks=[*hooks, *made],
        sampler=sampler,
        device=device,
        clip_norm=10.0,
        move=load_data_to_gpu,
        logger=logging.getLogger("cache"),
    )


def run(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The state at the end of a run from a fixed seed."""
    set_seed(1)
    trainer.run()
    return copy.deepcopy(trainer.model.state_dict())


def cache_of(trainer: Trainer) -> PrefixCache:
    """The cache of a run."""
    hook = next(hook for hook in trainer.hooks if isinstance(hook, FrozenPrefixHook))
    assert hook.cache is not None
    return hook.cache
