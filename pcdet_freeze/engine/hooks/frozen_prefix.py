"""Run the frozen prefix of training forwards without a graph, folded, or from a cache (F1, F5, F7)."""

from __future__ import annotations

from typing import Any

from torch import nn

from pcdet_freeze.engine.hooks.base import ConfiguredHook
from pcdet_freeze.engine.prefix_cache import PrefixCache
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.plan import CacheOptions
from pcdet_freeze.freezing.prefix import FastForward, Options, Replanner
from pcdet_freeze.freezing.prefix.fast_forward import ScopedForward
from pcdet_freeze.utils.picklable_hook import PicklableHook


class FrozenPrefixHook(ConfiguredHook):
    """Plans the frozen prefix in the first training forward, and again when something else is frozen.

    The plan is made on a copy of the model: the training and its random generators are not changed.
    Evaluations and forwards of other models are not affected. With ``cache`` the outputs of the prefix are
    kept on disk (F7).
    """

    def __init__(self, model: nn.Module, options: Options, cache: CacheOptions | None = None) -> None:
        self.replanner = Replanner(model, options)
        self.cache = None if cache is None else PrefixCache(cache)
        self._watched: nn.Module | None = None
        self._handle: Any = None
        self._scope: ScopedForward | None = None

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

    def on_exception(self, trainer: Trainer) -> None:
        self._stop()
        self.replanner.forget()

    def _watch(self, trainer: Trainer) -> None:
        self._stop()
        self._watched = model = trainer.model

        self._scope = scope = ScopedForward(model)

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            if module is self._watched and module.training and scope.is_installed:
                try:
                    self.prepare(trainer, *args, **kwargs)
                    scope.run_next_in(self._forward(trainer, args).prepare())
                except BaseException:
                    scope.remove()
                    raise

        # the first pre-hook: the forwards are chosen before other hooks change the model
        hook = PicklableHook(begin)
        self._handle = model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)

    def prepare(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Make and log a plan for a training forward with these arguments, unless there is one."""
        if not self.replanner.is_settled:
            made = self.replanner.prepare(*args, **kwargs)
            for line in self.replanner.plan.lines() if made else []:
                trainer.logger.info("%s", line)
        if self.cache is not None:
            self.cache.prepare(self.replanner, args[0], lambda line: trainer.logger.info("%s", line))

    def _forward(self, trainer: Trainer, args: Any) -> FastForward:
        if self.cache is None:
            return self.replanner.fast
        self.cache.prefetch(trainer)
        return self.cache.forward(self.replanner, args[0])

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        if self._scope is not None:
            self._scope.remove()
        self._handle = self._scope = self._watched = None
