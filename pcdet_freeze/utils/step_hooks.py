"""Step hooks of an optimizer that run in every version of torch, after ``torch.compile`` too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

_COMPILE_REMOVES_HOOKS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6)
"""whether torch.compile may remove the step hooks from all classes of torch.optim, at its first call
in a process: torch 2.2 does, 2.13 does not; the bound is a safe one"""
_HOOKED_CODE = Optimizer.profile_hook_step(lambda self: None).__code__


def keep_step_hooks(optimizer: Optimizer) -> None:
    """Make ``optimizer`` run its step hooks even if ``torch.compile`` removed or removes them from its class.

    Call it before a step hook is registered. A second call does nothing.
    """
    if not _COMPILE_REMOVES_HOOKS:
        return
    # a learning-rate scheduler replaces the bound method by a function without self
    step: Any = getattr(optimizer.step, "__func__", None) or _with_self(optimizer.step)
    if not runs_step_hooks(step):
        step = Optimizer.profile_hook_step(step)
    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]


def runs_step_hooks(step: Callable[..., Any]) -> bool:
    """Whether ``step``, or a function that it wraps, is the one of torch that runs the step hooks."""
    function: Any = step
    while function is not None:
        if getattr(function, "__code__", None) is _HOOKED_CODE:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def is_skipped(optimizer: Optimizer) -> bool:
    """Whether the step that ``optimizer`` makes now changes nothing, for a step hook; waits for the device.

    Where gradients are infinite, a GradScaler calls no ``step()``, and so no hook. But it does call that of a
    fused optimizer, which gets the verdict as ``found_inf``, on the device.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return isinstance(found_inf, torch.Tensor) and bool(found_inf.item())


class FirstStep:
    """Tells once that an optimizer has made its first step that no GradScaler skipped."""

    def __init__(self) -> None:
        self._is_made = False
        self._hook: RemovableHandle | None = None

    def wait_for(self, optimizer: Optimizer) -> None:
        """Wait for the next step of ``optimizer``, and no longer for one of another."""
        self._stop()

        def note(stepped: Optimizer, *_: Any) -> None:
            # copies of an optimizer share its hooks
            self._is_made = self._is_made or (stepped is optimizer and not is_skipped(stepped))

        keep_step_hooks(optimizer)
        self._hook = optimizer.register_step_post_hook(note)

    def has_come(self) -> bool:
        """True in the first call after that step, and in no other."""
        if self._is_made:
            self._stop()
            return True
        return False

    def _stop(self) -> None:
        self._is_made = False
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _with_self(step: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(step)
    def call(_self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    return call
