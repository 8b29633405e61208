"""Trainers that differ in what they freeze, and in nothing else."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcdet_freeze.bench.against import AGAINST, check_installed
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.freeze import MultiTaskFreezeHook
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg
from pcdet_freeze.engine.hooks.frozen_prefix import FrozenPrefixHook
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.prefix_cache.cache import ENTRY
from pcdet_freeze.engine.trainer import Batch, Trainer, clip_norm_of
from pcdet_freeze.errors import ConfigError, FreezeError
from pcdet_freeze.freezing import FreezePlan, frozen
from pcdet_freeze.freezing.prefix import Options

STEPS = 1000
"""Length in iterations of the schedule that a benchmark pretends to be in."""
Prepare = Callable[[nn.Module, Any], Sequence[Hook]]


@dataclass
class Contender:
    """One variant, ready to take steps on the same batch again and again."""

    name: str
    trainer: Trainer
    batch: Batch

    def step(self) -> float:
        """The trainer's own step; returns its loss. The batch stays as it was: the model fills a copy."""
        self.trainer.step(dict(self.batch))
        self.trainer.batch = {}
        return self.trainer.loss

    def plain_calls(self) -> int:
        """How often so far something that is to run compiled ran as it is written."""
        return sum(hook.replanner.fast.plain_calls for hook in self._fast())

    def uncompiled(self) -> str:
        """Why nothing runs compiled though that was asked for; empty where it does, or was not asked for."""
        for hook in self._fast():
            if hook.replanner.options.compile and not hook.replanner.plan.compiled:
                notes = [line for line in hook.replanner.plan.plain if "torch.compile" in line]
                return "; ".join(notes) or "no part of the prefix takes one tensor and gives one"
        return ""

    def uncached(self) -> str:
        """Why nothing comes from a cache though that was asked for; empty where it does, or was not."""
        empty = any(hook.cache is not None and hook.cache.store is None for hook in self._fast())
        return "nothing that trains reads a frozen prefix, so there is nothing to keep" if empty else ""

    def _fast(self) -> list[FrozenPrefixHook]:
        return [hook for hook in self.trainer.hooks if isinstance(hook, FrozenPrefixHook)]


def _none(model: nn.Module, cfg: Any) -> Sequence[Hook]:
    return ()


def _none_fused(model: nn.Module, cfg: Any) -> Sequence[Hook]:
    return [FrozenPrefixHook(model, Options())]


def _requires_grad(model: nn.Module, cfg: Any) -> Sequence[Hook]:
    freeze_parameters(model, FreezePlan.from_cfg(cfg))
    return ()


def _frozen(**options: Any) -> Prepare:
    """Freeze through the hook of a real training, so that what it does is what is measured.

    The companions that look at the first steps only are left out, and no pretrained weights are asked for.
    """

    def prepare(model: nn.Module, cfg: Any) -> Sequence[Hook]:
        own = copy.deepcopy(cfg)
        own.MODEL.FREEZE = {**(cfg.MODEL.get("FREEZE") or {}), "ALLOW_RANDOM": True, **options}
        made = hooks_from_cfg(own, model)
        return [hook for hook in made if isinstance(hook, MultiTaskFreezeHook | FrozenPrefixHook)]

    return prepare


def _cached(model: nn.Module, cfg: Any) -> Sequence[Hook]:
    """In a folder of its own, which goes when the hooks do."""
    folder = tempfile.mkdtemp(prefix="pcdet_freeze_bench_")
    hooks = _frozen(CACHE=folder)(model, cfg)
    weakref.finalize(hooks[0], shutil.rmtree, folder, ignore_errors=True)
    return hooks


class OneBatch:
    """A loader of one batch, and a data set whose samples are those of that batch."""

    def __init__(self, batch: Batch) -> None:
        rows = int(batch.get("batch_size", 0))
        self.batch = {**batch, ENTRY: np.array([[row, 0] for row in range(rows)])}
        self.dataset = self

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        return iter([dict(self.batch)])

    def keep_variants(self, variants: int | None) -> None:
        """The batch is the same again and again as it is."""

    def cache_key(self) -> dict[str, Any]:
        """How many samples there are."""
        return {"rows": len(self.batch[ENTRY]), "variants": 1}


BF16 = {"PREFIX_DTYPE": "bfloat16"}
BUILT: dict[str, Prepare] = {
    "none": _none,
    "bn_only": _frozen(PARAMETERS=False),
    "requires_grad": _requires_grad,
    "exact": _frozen(PARAMETERS=True),
    "channels_last": _frozen(CHANNELS_LAST=True),
    "bf16_prefix": _frozen(**BF16),
    "bf16": _frozen(**BF16, FUSE="force", CHANNELS_LAST=True),
    "cached": _cached,
    "compile": _frozen(COMPILE=True),
    "none_fused": _none_fused,
    "none_bf16": _none,
}
"""Name -> what it does to a model, given the config; the hooks that it returns belong to its trainer.

none: nothing is frozen, the arithmetic is OpenPCDet's. bn_only: norm layers are held, parameters train
(FREEZE.PARAMETERS: False). requires_grad: parameters do not train, norm layers are live. exact: both, and
layers computed as one, as a training does by default. channels_last, bf16_prefix, compile: what FREEZE offers
beyond. cached: exact, and the prefix's outputs come from a FREEZE.CACHE that is full. bf16: the suffix too.
none_fused: nothing is frozen, and the head's layers on one map are one. none_bf16: nothing is frozen, under
autocast.
"""
AUTOCAST = ("bf16", "none_bf16")
"""variants whose whole step runs under autocast"""


def check_variants(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` with 'none' first, each once; ConfigError that lists the unknown ones."""
    unknown = [name for name in names if name not in (*BUILT, *AGAINST)]
    if unknown:
        known = f"{', '.join(BUILT)}, or other packages, {', '.join(AGAINST)}"
        raise ConfigError(f"variants must be among {known}; got {', '.join(map(repr, unknown))}")
    check_installed(names)
    return tuple(dict.fromkeys(["none", *names]))


def build_contenders(model: nn.Module, cfg: Any, batch: Batch, names: Sequence[str]) -> list[Contender]:
    """A trainer for each of ``names``, each on its own copy of ``model``; the first is 'none'.

    Args:
        model: as built, on the device of ``batch``; it is not changed.
        cfg: the config; MODEL.NOT_TRAIN_IN_MULTI_TASK says what is frozen.
        batch: batch_dict that every step is given.

    Raises:
        ConfigError: an unknown variant, or nothing named to freeze where a variant wants to.
        FreezeError: names that do not fit the model.
    """
    chosen = check_variants(names)
    if len(chosen) > 1 and not FreezePlan.from_cfg(cfg):
        raise ConfigError(
            f"the variants {', '.join(chosen[1:])} need a list of what to freeze, but "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK is empty: give --freeze vfe,backbone_2d.blocks"
        )
    start, prepare = copy.deepcopy(model), {**BUILT, **AGAINST}
    settle_statistics(start, batch)
    return [contender(name, copy.deepcopy(start), cfg, batch, prepare[name]) for name in chosen]


def contender(name: str, model: nn.Module, cfg: Any, batch: Batch, prepare: Prepare) -> Contender:
    """The trainer that a training with ``cfg`` would have, after ``prepare`` froze what it freezes."""
    hooks, loader = prepare(model, cfg), OneBatch(batch)
    optimizer = build_optimizer(model, cfg.OPTIMIZATION)
    trainer = Trainer(
        model,
        optimizer,
        build_scheduler(optimizer, STEPS, STEPS, cfg.OPTIMIZATION),
        loader,
        epochs=1,
        hooks=hooks,
        device=next(model.parameters()).device,
        clip_norm=clip_norm_of(cfg.OPTIMIZATION),
        use_amp=name in AUTOCAST,
    )
    model.train()
    for hook in hooks:
        hook.before_train(trainer)
        if isinstance(hook, FrozenPrefixHook):
            _plan(name, hook, trainer, loader.batch)
    return Contender(name, trainer, loader.batch)


def _plan(name: str, hook: FrozenPrefixHook, trainer: Trainer, batch: Batch) -> None:
    """In a training this belongs to the first step, here to no step."""
    try:
        hook.prepare(trainer, dict(batch))
    except FreezeError as error:
        raise FreezeError(f"{name}: {error} Here: leave {name} out of --variants.") from error


def freeze_parameters(model: nn.Module, plan: FreezePlan) -> None:
    """``requires_grad=False`` for what ``plan`` names; no layer is held."""
    with frozen(model, plan) as handle:
        parameters = handle.parameters()
    for parameter in parameters:
        parameter.requires_grad_(False)


def settle_statistics(model: nn.Module, batch: Batch) -> None:
    """Give every BatchNorm the statistics of ``batch``, as if ``model`` had been trained on such data.

    With those of a new network (0 and 1) a held layer would let the features shrink from layer to layer.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    was_training = model.training
    model.train()
    with torch.no_grad(), _momentum(layers, 1.0):
        model(dict(batch))
    model.train(was_training)


@contextmanager
def _momentum(layers: Sequence[_BatchNorm], value: float) -> Iterator[None]:
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = value
    try:
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
