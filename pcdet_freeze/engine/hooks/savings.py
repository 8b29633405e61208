"""F4 in a training: measured once, after the first iteration."""

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
from pcdet_freeze.engine.hooks.max_iters import MaxItersHook
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

SHORTEST = 50
"""iterations that a run must still have before it for the measurement to be worth its eight steps"""


class Freezes(Protocol):
    """Who froze the model, and what its optimizers are made from."""

    handle: FreezeHandle
    optim_cfg: Mapping[str, Any] | None


class SavingsHook(ConfiguredHook):
    """Logs what freezing saves, and leaves it for ``run.json``; the training itself is what it was.

    Every rank measures by itself, all alike. Where a copy cannot do the steps (memory does not suffice,
    labels of a frozen head are missing), the log says why there is no figure, and the training goes on.
    """

    def __init__(self, owner: Freezes, options: Options) -> None:
        self.owner, self.options = owner, options
        self._batch: Batch | None = None
        self._catcher: Any = None

    def describe(self) -> str:
        return ""

    def before_train(self, trainer: Trainer) -> None:
        self._stop()
        if self.owner.optim_cfg and iterations_left(trainer) >= SHORTEST:
            self._catcher = unwrap(trainer.model).register_forward_pre_hook(PicklableHook(self._catch))

    def after_step(self, trainer: Trainer) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        self._stop()
        try:
            with untouched_rng():
                saved = measure(trainer, batch, self.options, self.owner.optim_cfg)
        except Exception as error:  # whatever a copy of the model cannot do, the training did
            first = (str(error).strip() or repr(error)).splitlines()[0]
            trainer.logger.info("What freezing saves was not measured: %s: %s", type(error).__name__, first)
        else:
            cache = ", which read no cache" if self.owner.handle.plan.cache else ""
            trainer.logger.info("%s; measured on copies of the model%s.", saved, cache)
            trainer.results["freezing_saves"] = saved.to_plain()
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of a size that only the copies needed

    def after_train(self, trainer: Trainer) -> None:
        self._stop()

    def _catch(self, model: Any, args: tuple[Any, ...]) -> None:
        if model.training and self._batch is None:
            self._batch = clone_detached(args[0])

    def _stop(self) -> None:
        if self._catcher is not None:
            self._catcher.remove()
        self._catcher, self._batch = None, None


def iterations_left(trainer: Trainer) -> int:
    """How many iterations the run has before it."""
    ends = [hook.iterations for hook in trainer.hooks if isinstance(hook, MaxItersHook)]
    return min([trainer.epochs * trainer.epoch_length, *ends]) - trainer.iteration


TIMED = 2
"""timed steps of each copy, in turns"""


@dataclass(frozen=True)
class Cost:
    """What a step takes."""

    seconds: float
    """the quicker step by the clock on the wall: forward, loss, backward, clipping, optimizer"""
    peak_bytes: int
    """most bytes of live tensors at one time, see :func:`pcdet_freeze.utils.memory.peak_bytes`"""


@dataclass(frozen=True)
class Savings:
    """Two costs, side by side."""

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
    """Take steps on copies of the trainer's model; the trainer and all that it holds stay as they are.

    Each copy makes one step that does not count, one in which its memory is followed, and ``TIMED`` in turns
    with the other. No collective call is made: live SyncBatchNorm layers of the copies work by themselves.
    Generators go on: see :func:`pcdet_freeze.utils.rng.untouched_rng`.

    Args:
        batch: as a forward gets it.
        options: what the training does to its prefix.
        optim_cfg: OPTIMIZATION, for optimizers of the copies.
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
    """Bytes at the peak of the second step: the first makes plans and the optimizer's state."""
    run.step(dict(batch))
    run.batch = {}
    run.optimizer.zero_grad(set_to_none=True)  # gradients of the step before are not of this one
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
