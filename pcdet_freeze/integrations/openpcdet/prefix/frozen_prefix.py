"""FREEZE.FUSE, PREFIX_DTYPE, CHANNELS_LAST and COMPILE inside an unmodified OpenPCDet (F5, F6)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.plan import BLOCK
from pcdet_freeze.freezing.prefix import FastForward, Options, Plan, Replanner
from pcdet_freeze.freezing.prefix.no_grad_call import is_plain_float32
from pcdet_freeze.freezing.prefix.validate import LOOSE, TOLERANCE
from pcdet_freeze.integrations.openpcdet.prefix.bev_maps import bev_map_form
from pcdet_freeze.integrations.openpcdet.prefix.joined_maps import joined_maps_form
from pcdet_freeze.integrations.openpcdet.prefix.valid_points import valid_points_form
from pcdet_freeze.utils.picklable_hook import PicklableHook

LIMIT = 5 * TOLERANCE
"""limit of the relative error (L2) of the whole prefix in float32: errors of layers add up. With 16-bit
arithmetic or TF32 it is LOOSE, as for one layer"""


def with_defaults(plan: FreezePlan, block: Mapping[str, Any]) -> FreezePlan:
    """``plan`` with the defaults of the plugin: no FUSE, and CHANNELS_LAST where FUSE is on.

    Args:
        block: MODEL.FREEZE as it is written.

    Raises:
        FreezeError: CACHE is set.
    """
    if plan.cache is not None:
        raise FreezeError(
            f"MODEL.{BLOCK}.CACHE needs a loader that draws the augmentation of each sample from a seed of "
            "its own, but OpenPCDet draws augmentation and order from one random stream a worker, so that no "
            "sample comes twice. Remove CACHE, or use the trainer of pcdet_freeze."
        )
    fuse = plan.fuse if "FUSE" in block else False
    channels_last = plan.channels_last if "CHANNELS_LAST" in block else bool(fuse)
    return replace(plan, fuse=fuse, channels_last=channels_last)


def _quick_form(module: nn.Module) -> Callable[..., Any] | None:
    return valid_points_form(module) or bev_map_form(module)


def _quick_or_joined(module: nn.Module) -> Callable[..., Any] | None:
    return _quick_form(module) or joined_maps_form(module)


def _options_of(plan: FreezePlan) -> Options:
    """Options of the prefix, with the quick forms that ``plan`` allows."""
    options = Options.of(plan)
    form: Callable[[nn.Module], Callable[..., Any] | None] = valid_points_form
    if plan.channels_last:
        # parts of a module with a quick form are not compiled
        form = _quick_or_joined if options.is_exact and not plan.compile else _quick_form
    few = bool(plan.channels_last) and options.is_exact and not plan.compile
    return replace(options, quick_form=form, few_products=few)


class FrozenPrefix:
    """Runs the frozen prefix of the training forwards of a detector as MODEL.FREEZE says.

    The plan is made in the first training forward, on a copy of the detector, and again when something else
    is frozen. Where the copy differs from the detector as written by more than the tolerance, the detector
    runs as written.

    Args:
        model: the frozen detector.
        plan: see :func:`with_defaults`.
        logger: gets the plan, its relative error, and a warning where something does not run as it was asked.
    """

    def __init__(self, model: nn.Module, plan: FreezePlan, logger: logging.Logger) -> None:
        options = _options_of(plan)
        self.is_on = bool(options.fuse) or not options.only_fuses
        self.model, self.logger, self.options = model, logger, options
        self.replanner = Replanner(model, options, shared=(getattr(model, "dataset", None),))
        self._next: FastForward | None = None
        self._hook: Any = None
        self._is_tried = True
        """whether a forward has ended since the plan was made"""
        self._end_checks: Callable[[], None] = lambda: None

    def watch(self, wrapped: nn.Module, end_checks: Callable[[], None]) -> None:
        """Choose the forwards of the frozen modules before each training forward of ``wrapped``.

        Call it after other code registered its hooks on ``wrapped``: this one must be the first, since
        modules run as written while they have hooks, such as those of the checks of the first step.

        Args:
            end_checks: removes the hooks of these checks after a forward that raised.
        """
        self.stop()
        self._end_checks = end_checks
        if self.is_on:
            # calls of copies of the detector are not prepared: a PicklableHook does nothing there
            hook = PicklableHook(self._before_forward)
            self._hook = wrapped.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)

    def stop(self) -> None:
        """Run every forward as written from now on."""
        self._next = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def forward(self) -> AbstractContextManager[Any]:
        """The context of the training forward that begins now."""
        fast, self._next = self._next, None
        return nullcontext() if fast is None else fast

    def forward_ended(self) -> None:
        """A training forward has ended without an error: its plan stays."""
        self._is_tried = True

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._next = None
        if not module.training or not torch.is_grad_enabled():
            return
        self._end_checks()
        if not self._is_tried:  # that forward raised, so perhaps did the copy that the plan was made with
            self.replanner.forget()
        if self.replanner.prepare(*args, **kwargs):
            self._is_tried = False
            self._judge(self.replanner.plan)
        self._next = self.replanner.fast.prepare()

    def _judge(self, plan: Plan) -> None:
        """Log the plan; where its relative error exceeds the tolerance, replace it by an empty one."""
        exact = self.options.is_exact and is_plain_float32(self.model)
        limit = LIMIT if exact else LOOSE
        if plan.difference is not None and not plan.difference <= limit:
            self._run_as_written()
            self.logger.warning(
                "pcdet_freeze: the frozen modules run as written: with MODEL.%s.%s their outputs have a "
                "relative error of %.1e (L2) on the first batch, but it must be at most %.0e",
                BLOCK,
                self._keys(),
                plan.difference,
                limit,
            )
            return
        for line in plan.lines():
            self.logger.info("pcdet_freeze: %s", line)
        if plan.difference is None or not plan.prefix:
            self._run_as_written()
            self._warn_no_effect(self._keys(), plan)
        elif self.options.fuse and not (plan.folds or plan.quick):
            self._warn_no_effect(f"FUSE: {self.options.fuse}", plan)

    def _warn_no_effect(self, keys: str, plan: Plan) -> None:
        self.logger.warning(
            "pcdet_freeze: MODEL.%s.%s has no effect: %s",
            BLOCK,
            keys,
            "; ".join(plan.plain)
            or "no frozen module runs before the first trainable one, or has norm layers",
        )

    def _run_as_written(self) -> None:
        self.replanner.fast = FastForward(self.model, Plan(), Options(False))

    def _keys(self) -> str:
        """The keys that are on, as in the config."""
        options = self.options
        found = [f"FUSE: {options.fuse}"] if options.fuse else []
        found += [] if options.is_exact else [f"PREFIX_DTYPE: {str(options.dtype).removeprefix('torch.')}"]
        found += ["CHANNELS_LAST: True"] if options.channels_last else []
        found += [f"COMPILE: {options.compile}"] if options.compile else []
        return ", ".join(found)
