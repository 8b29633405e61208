"""A training's forwards by the plan of :mod:`pcdet_freeze.freezing.prefix` (F1, F5)."""

from __future__ import annotations

from typing import Any

from torch import nn

from pcdet_freeze.engine.hooks.base import ConfiguredHook
from pcdet_freeze.engine.prefix_cache import PrefixCache
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.plan import CacheOptions
from pcdet_freeze.freezing.prefix import FastForward, Options, Replanner
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import untouched_rng


class FrozenPrefixHook(ConfiguredHook):
    """Plans in the first training forward, and again where something else is frozen; then works by it.

    The plan is made on a copy of the model, so nothing of the training moves, its generators neither.
    Evaluations, and forwards of anything but the trainer's own model, run as they are written. With ``cache``
    the prefix's outputs are kept on disk (F7).
    """

    def __init__(self, model: nn.Module, options: Options, cache: CacheOptions | None = None) -> None:
        self.renewed = Replanner(model, options)
        self.cache = None if cache is None else PrefixCache(cache)
        self._watched: nn.Module | None = None
        self._handles: list[Any] = []
        self._running: FastForward | None = None

    def describe(self) -> str:
        return ""

    def before_train(self, trainer: Trainer) -> None:
        if self.cache is not None:
            self.cache.take_data(trainer.loader)
        self._watch(trainer)

    def before_epoch(self, trainer: Trainer) -> None:
        if self._watched is not trainer.model:
            self._watch(trainer)

    def after_train(self, trainer: Trainer) -> None:
        self._stop()

    def _watch(self, trainer: Trainer) -> None:
        self._stop()
        self._watched = model = trainer.model

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._end()  # of a forward that was interrupted: torch calls no hook then
            if module is self._watched and module.training:
                self.prepare(trainer, *args, **kwargs)
                self._running = self._forward(trainer, args).__enter__()

        # first of all hooks, and last: what others do to the model meets it as it is
        self._handles = [
            model.register_forward_pre_hook(PicklableHook(begin), with_kwargs=True, prepend=True),
            model.register_forward_hook(PicklableHook(self._leave), always_call=True, prepend=True),
        ]

    def prepare(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Plan for a training forward with these arguments, if there is no plan yet, and log it."""
        if not self.renewed.is_settled:
            with untouched_rng():
                made = self.renewed.prepare(*args, **kwargs)
            for line in self.renewed.plan.lines() if made else []:
                trainer.logger.info("%s", line)
        if self.cache is not None:
            self.cache.prepare(self.renewed, args[0], lambda line: trainer.logger.info("%s", line))

    def _forward(self, trainer: Trainer, args: Any) -> FastForward:
        if self.cache is None:
            return self.renewed.fast
        self.cache.prefetch(trainer)
        return self.cache.forward(self.renewed, args[0])

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # a forward that failed has no output, and its own error is the one to tell
        self._end(RuntimeError if output is None else None)

    def _end(self, error: type[BaseException] | None = None) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.__exit__(error, None, None)

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._watched = [], None
