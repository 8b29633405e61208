"""A module hook that copies and pickles of the module do not keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PicklableHook:
    """Calls ``call``; in a copy or pickle of the module it is a hook that does nothing.

    A model in training can so be copied and saved whole, although its hooks refer to the trainer.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return PicklableHook, (_nothing,)


def _nothing(*_: Any) -> None:
    """The hook of a copy."""
