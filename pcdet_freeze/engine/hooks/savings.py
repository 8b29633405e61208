"""Measure what freezing saves (F4): once a run, after its first iteration."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcdet_freeze.engine.hooks.base import ConfiguredHook
from pcdet_freeze.engine.hooks.frozen_prefix import FrozenPrefixHook
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import Batch, Trainer
from pcdet_freeze.freezing import FreezeHandle, unfreeze
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.freezing.prefix import Options
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.memory import optimizer_tensors, peak_bytes
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.tensors import clone_detached, tensors_with_path

SHORTEST = 1000
"""shortest rest of a run, in iterations; five unfrozen steps are at most 2 % of so many frozen ones"""


class FreezeOwner(Protocol):
    """The hook that froze the model, and the config of its optimizers."""

    handle: FreezeHandle
    optim_cfg: Mapping[str, Any] | None


class SavingsHook(ConfiguredHook):
    """Logs what freezing saves and adds it to ``run.json``; the training itself is not changed.

    It takes eight steps on two copies of the model; ``OPTIMIZATION.MEASURE_SAVINGS: False`` (--no_savings)
    turns it off. Every rank measures by itself. If a copy cannot do the steps (out of memory, no labels for a
    frozen head), the log says why and the training continues.
    """

    def __init__(self, owner: FreezeOwner, options: Options) -> None:
        self.owner, self.options = owner, options
        self._batch: Batch | None = None
        self._catcher: Any = None

    def describe(self) -> str:
        return ""

    def before_train(self, trainer: Trainer) -> None:
        self._stop()
        wanted = self.owner.optim_cfg and self.owner.optim_cfg.get("MEASURE_SAVINGS", True)
        if wanted and "freezing_saves" not in trainer.results and trainer.iterations_left >= SHORTEST:
            self._catcher = unwrap(trainer.model).register_forward_pre_hook(PicklableHook(self._catch))

    def after_step(self, trainer: Trainer) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        self._stop()
        try:
            with untouched_rng():
                saved = measure(trainer, batch, self.options, self.owner.optim_cfg)
        except Exception as error:  # the training itself did this step: no error of a copy may end it
            first = (str(error).strip() or repr(error)).splitlines()[0]
            trainer.logger.info(
                "The savings of freezing could not be measured: %s: %s", type(error).__name__, first
            )
        else:
            cache = ", which read no cache" if self.owner.handle.plan.cache else ""
            trainer.logger.info("%s; measured on copies of the model%s.", saved, cache)
            trainer.results["freezing_saves"] = saved.to_plain()
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of a size that only the copies needed

    def after_train(self, trainer: Trainer) -> None:
        self._stop()

    on_exception = after_train

    def _catch(self, model: Any, args: tuple[Any, ...]) -> None:
        if model.training and self._batch is None:
            self._batch = clone_detached(args[0])

    def _stop(self) -> None:
        if self._catcher is not None:
            self._catcher.remove()
        self._catcher, self._batch = None, None


TIMED = 2
"""timed steps of each copy, alternating"""


@dataclass(frozen=True)
class Cost:
    """Cost of a step."""

    seconds: float
    """wall time of the faster step: forward, loss, backward, clipping, optimizer"""
    peak_bytes: int
    """peak bytes of tensors, see :func:`pcdet_freeze.utils.memory.peak_bytes`"""


@dataclass(frozen=True)
class Savings:
    """Cost of a step with and without the freeze."""

    frozen: Cost
    nothing_frozen: Cost

    def __str__(self) -> str:
        """One line for the log."""
        now, then = self.frozen, self.nothing_frozen
        time, memory = then.seconds - now.seconds, then.peak_bytes - now.peak_bytes
        return (
            f"Freezing saves {time:.3g} of {then.seconds:.3g} s a step ({time / then.seconds:.0%}) and "
            f"{memory / 1e9:.3g} of {then.peak_bytes / 1e9:.3g} GB of tensors at the peak "
            f"({memory / then.peak_bytes:.0%})"
        )

    def to_plain(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)


def measure(trainer: Trainer, batch: Batch, options: Options, optim_cfg: Any) -> Savings:
    """Take steps on copies of the trainer's model; the trainer and its model are not changed.

    Each copy takes one warm-up step, one in which its memory is measured, and ``TIMED`` timed ones. No
    collective call is made: trainable SyncBatchNorm layers of the copies use local statistics. The random
    generators advance: see :func:`pcdet_freeze.utils.rng.untouched_rng`.

    Args:
        batch: as a forward gets it.
        options: options of the frozen prefix.
        optim_cfg: OPTIMIZATION, for the optimizers of the copies.
    """
    runs = [_copy(trainer, options, optim_cfg), _copy(trainer, None, optim_cfg)]
    peaks = [_peak(run, batch) for run in runs]
    seconds: list[list[float]] = [[], []]
    for _ in range(TIMED):
        for run, found in zip(runs, seconds, strict=True):
            found.append(_seconds(run, batch))
    frozen, nothing = (Cost(min(found), peak) for found, peak in zip(seconds, peaks, strict=True))
    return Savings(frozen, nothing)


def _copy(trainer: Trainer, options: Options | None, optim_cfg: Any) -> Trainer:
    """A trainer with a copy of the model; ``options`` is None for one with nothing frozen."""
    model = copy.deepcopy(unwrap(trainer.model))
    if options is None:
        unfreeze(model)
    for layer in model.modules():
        if isinstance(layer, nn.SyncBatchNorm) and not is_locked(layer):
            layer.__dict__["forward"] = partial(_BatchNorm.forward, layer)
    made = Trainer(
        model,
        build_optimizer(model, optim_cfg),
        trainer.schedule,
        [None],
        epochs=1,
        device=trainer.device,
        clip_norm=trainer.clip_norm,
        use_amp=trainer.use_amp,
        logger=logging.Logger("copy", level=logging.CRITICAL),
    )
    made.iteration = trainer.iteration
    if options is not None:
        FrozenPrefixHook(model, options).before_train(made)
    return made


def _peak(run: Trainer, batch: Batch) -> int:
    """Peak bytes of the second step: the first one plans the prefix and creates the optimizer state."""
    run.step(dict(batch))
    run.batch = {}
    run.optimizer.zero_grad(set_to_none=True)  # gradients of the warm-up step do not count
    own = [*run.model.parameters(), *run.model.buffers(), *optimizer_tensors(run.optimizer)]
    own += [tensor for _, tensor in tensors_with_path(batch)]
    return peak_bytes(lambda: run.step(dict(batch)), own, run.device)


def _seconds(run: Trainer, batch: Batch) -> float:
    _settle(run.device)
    begin = perf_counter()
    run.step(dict(batch))
    _settle(run.device)
    run.batch = {}
    return perf_counter() - begin


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
