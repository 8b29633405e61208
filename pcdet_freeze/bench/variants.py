"""Build trainers that differ only in what they freeze."""

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

from pcdet_freeze.bench.other_packages import AGAINST, check_installed
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
from pcdet_freeze.models.vfe import PillarVFE
from pcdet_freeze.ops.maps.map_layout import train_channels_last

STEPS = 1000
"""length in iterations of the learning rate schedule"""
Prepare = Callable[[nn.Module, Any], Sequence[Hook]]


@dataclass
class Contender:
    """A variant that takes steps on one batch."""

    name: str
    trainer: Trainer
    batch: Batch

    def step(self) -> float:
        """Take one step of the trainer on a shallow copy of the batch; returns the loss."""
        self.trainer.step(dict(self.batch))
        self.trainer.batch = {}
        return self.trainer.loss

    def plain_calls(self) -> int:
        """Calls of compiled modules, so far, that ran eagerly."""
        return sum(hook.replanner.fast.plain_calls for hook in self._fast())

    def uncompiled(self) -> str:
        """Why nothing runs compiled although COMPILE is set; empty otherwise."""
        for hook in self._fast():
            if hook.replanner.options.compile and not hook.replanner.plan.compiled:
                notes = [line for line in hook.replanner.plan.plain if "torch.compile" in line]
                return "; ".join(notes) or "no part of the prefix takes one tensor and gives one"
        return ""

    def uncached(self) -> str:
        """Why nothing is read from a cache although CACHE is set; empty otherwise."""
        empty = any(hook.cache is not None and hook.cache.store is None for hook in self._fast())
        return "no trainable module reads a frozen prefix, so there is nothing to cache" if empty else ""

    def _fast(self) -> list[FrozenPrefixHook]:
        return [hook for hook in self.trainer.hooks if isinstance(hook, FrozenPrefixHook)]


def _none(model: nn.Module, cfg: Any) -> Sequence[Hook]:
    return ()


def _requires_grad(model: nn.Module, cfg: Any) -> Sequence[Hook]:
    freeze_parameters(model, FreezePlan.from_cfg(cfg))
    return ()


def _frozen(**options: Any) -> Prepare:
    """Freeze by the hooks of a training, without those that check the first steps or pretrained weights."""

    def prepare(model: nn.Module, cfg: Any) -> Sequence[Hook]:
        own = copy.deepcopy(cfg)
        own.MODEL.FREEZE = {**(cfg.MODEL.get("FREEZE") or {}), "ALLOW_RANDOM": True, **options}
        made = hooks_from_cfg(own, model)
        return [hook for hook in made if isinstance(hook, MultiTaskFreezeHook | FrozenPrefixHook)]

    return prepare


def _cached(model: nn.Module, cfg: Any) -> Sequence[Hook]:
    """Freeze with a cache in a temporary folder that is removed with the hooks."""
    folder = tempfile.mkdtemp(prefix="pcdet_freeze_bench_")
    hooks = _frozen(CACHE=folder)(model, cfg)
    weakref.finalize(hooks[0], shutil.rmtree, folder, ignore_errors=True)
    return hooks


class OneBatch:
    """A loader, and data set, of one batch."""

    def __init__(self, batch: Batch) -> None:
        rows = int(batch.get("batch_size", 0))
        self.batch = {**batch, ENTRY: np.array([[row, 0] for row in range(rows)])}
        self.dataset = self

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        return iter([dict(self.batch)])

    def keep_variants(self, variants: int | None) -> None:
        """Do nothing: the batch has no random augmentation."""

    def cache_key(self) -> dict[str, Any]:
        """Number of samples and variants."""
        return {"rows": len(self.batch[ENTRY]), "variants": 1}


BF16 = {"PREFIX_DTYPE": "bfloat16"}
BUILT: dict[str, Prepare] = {
    "none": _none,
    "none_ragged": _none,
    "unfrozen": _none,
    "bn_only": _frozen(PARAMETERS=False),
    "requires_grad": _requires_grad,
    "exact": _frozen(PARAMETERS=True),
    "contiguous": _frozen(),
    "bf16_prefix": _frozen(**BF16),
    "bf16": _frozen(**BF16, FUSE="force", CHANNELS_LAST=True),
    "cached": _cached,
    "compile": _frozen(COMPILE=True),
    "whole_maps": _frozen(SKIP_EMPTY=False),
    "none_bf16": _none,
}
"""name -> a function that freezes a model by a config, and returns hooks for its trainer

none: nothing is frozen. none_ragged: the same, and PillarVFE computes valid points only. unfrozen: as in a
training by default, on valid points and channels-last maps. bn_only: norm layers are locked in eval mode,
parameters are trainable (FREEZE.PARAMETERS: False). requires_grad: parameters are frozen, norm layers are not
locked. exact: both, with BN folding, as in a training by default. whole_maps: exact, without leaving out
empty space. contiguous: exact with MODEL.CHANNELS_LAST: False. bf16_prefix, compile: exact with one more
FREEZE key. cached: exact, with the prefix's outputs read from a full FREEZE.CACHE. bf16: bf16_prefix, and
autocast for the rest. none_bf16: nothing is frozen, under autocast.
"""
AUTOCAST = ("bf16", "none_bf16")
"""variants whose whole step runs under autocast"""
CONTIGUOUS = ("none", "none_ragged", "bn_only", "requires_grad", "none_bf16", "contiguous", *AGAINST)
"""variants with contiguous maps: those that stand for other trainers, and one to compare with"""
RAGGED = "none_ragged"
"""the variant of an unfrozen training without padding"""
PADDED = ("none", "bn_only", "requires_grad", "none_bf16", *AGAINST)
"""variants that stand for other trainers: PillarVFE computes the padding, too, as OpenPCDet's does"""


def check_variants(names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` without repetition, 'none' first; raises ConfigError that lists unknown ones."""
    unknown = [name for name in names if name not in (*BUILT, *AGAINST)]
    if unknown:
        known = f"{', '.join(BUILT)}, or other packages, {', '.join(AGAINST)}"
        raise ConfigError(f"variants must be among {known}; got {', '.join(map(repr, unknown))}")
    check_installed(names)
    return tuple(dict.fromkeys(["none", *names]))


def build_contenders(model: nn.Module, cfg: Any, batch: Batch, names: Sequence[str]) -> list[Contender]:
    """Build a trainer for each of ``names``, each with its own copy of ``model``; the first is 'none'.

    Args:
        model: as built, on the device of ``batch``; it is not changed.
        cfg: the config; MODEL.NOT_TRAIN_IN_MULTI_TASK says what is frozen.
        batch: batch_dict of every step.

    Raises:
        ConfigError: an unknown variant, or an empty list where a variant freezes.
        FreezeError: names that are not in the model.
    """
    chosen = check_variants(names)
    if len(chosen) > 1 and not FreezePlan.from_cfg(cfg):
        raise ConfigError(
            f"the variants {', '.join(chosen[1:])} need a freeze list, but "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK is empty: give --freeze vfe,backbone_2d.blocks"
        )
    start, prepare = copy.deepcopy(model), {**BUILT, **AGAINST}
    settle_statistics(start, batch)
    return [contender(name, copy.deepcopy(start), cfg, batch, prepare[name]) for name in chosen]


def contender(name: str, model: nn.Module, cfg: Any, batch: Batch, prepare: Prepare) -> Contender:
    """Build the trainer of a training with ``cfg``, after ``prepare`` has frozen the model."""
    if name not in CONTIGUOUS:
        train_channels_last(model.modules())
    if name in PADDED or name == RAGGED:
        set_ragged(model, name == RAGGED)
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
    """Plan the frozen prefix now, so that no timed step does."""
    try:
        hook.prepare(trainer, dict(batch))
    except FreezeError as error:
        raise FreezeError(f"{name}: {error} Remove {name} from --variants.") from error


def freeze_parameters(model: nn.Module, plan: FreezePlan) -> None:
    """Set ``requires_grad=False`` on the modules of ``plan``; no norm layer is locked."""
    with frozen(model, plan) as handle:
        parameters = handle.parameters()
    for parameter in parameters:
        parameter.requires_grad_(False)


def set_ragged(model: nn.Module, ragged: bool) -> None:
    """Whether each PillarVFE of ``model`` computes valid points only."""
    for module in model.modules():
        if isinstance(module, PillarVFE):
            module.ragged = ragged


def settle_statistics(model: nn.Module, batch: Batch) -> None:
    """Set the running statistics of every BatchNorm to those of ``batch``.

    With the statistics of a new network (0 and 1) features would shrink from layer to layer in eval mode.
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
