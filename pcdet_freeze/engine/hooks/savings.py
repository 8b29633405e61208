"""F4 in a training: measured once, after the first iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from pcdet_freeze.engine.hooks.base import ConfiguredHook
from pcdet_freeze.engine.hooks.max_iters import MaxItersHook
from pcdet_freeze.engine.savings import measure
from pcdet_freeze.engine.trainer import Batch, Trainer
from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.freezing.prefix import Options
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.tensors import fresh

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
            self._batch = fresh(args[0])

    def _stop(self) -> None:
        if self._catcher is not None:
            self._catcher.remove()
        self._catcher, self._batch = None, None


def iterations_left(trainer: Trainer) -> int:
    """How many iterations the run has before it."""
    ends = [hook.iterations for hook in trainer.hooks if isinstance(hook, MaxItersHook)]
    return min([trainer.epochs * trainer.epoch_length, *ends]) - trainer.iteration
