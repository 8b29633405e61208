"""A hook on a module that stays with that module, whatever is copied or saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PicklableHook:
    """Calls ``call``; a copy or a pickle of the module takes along a hook that does nothing.

    So a model in training can be saved and copied whole, although its hooks know the trainer.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return PicklableHook, (_nothing,)


def _nothing(*_: Any) -> None:
    """What the hook of a copy does."""
