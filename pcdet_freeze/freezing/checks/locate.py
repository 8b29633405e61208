"""Find the submodule whose own code first makes two runs of a call differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pcdet_freeze.freezing.checks.output_sketch import Sketch, max_relative_error
from pcdet_freeze.freezing.checks.rerun_call import Call, run_in_a_row
from pcdet_freeze.freezing.entries.paths import join, walk
from pcdet_freeze.utils.tensors import tensors_with_path


@dataclass
class Event:
    """A module inside a call begins, with its inputs, or ends, with its outputs."""

    path: str
    module: nn.Module
    parent: tuple[str, nn.Module]
    """(path, module) whose code called it"""
    begins: bool
    tensors: Sketch


def first_difference(
    call: Call, one: tuple[int, bool], other: tuple[int, bool], limit: float
) -> tuple[str, str]:
    """(path, type) of the module whose own code first makes two runs differ by more than ``limit``.

    Args:
        one, other: (seed, training) of the two runs.
    """
    return _first_difference(call, _events(call, *one), _events(call, *other), limit)


def first_difference_in_a_row(call: Call, seed: int, training: bool, limit: float) -> tuple[str, str]:
    """The same for two runs in a row with one seed."""
    events = _events(call, seed, training, times=2)
    return _first_difference(call, events[: len(events) // 2], events[len(events) // 2 :], limit)


def _first_difference(call: Call, one: list[Event], other: list[Event], limit: float) -> tuple[str, str]:
    whole = call.path, type(call.module).__name__
    for a, b in zip(one, other, strict=False):
        other_calls = a.path != b.path or a.begins != b.begins
        if other_calls or max_relative_error(a.tensors, b.tensors, common=True) > limit:
            path, module = a.parent if a.begins else (a.path, a.module)
            return path, type(module).__name__
    return whole


def _events(call: Call, seed: int, training: bool, times: int = 1) -> list[Event]:
    events: list[Event] = []
    stack: list[tuple[str, nn.Module]] = [(call.path, call.module)]

    def enter(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            events.append(Event(path, module, stack[-1], True, _sketch(call, (args, kwargs))))
            stack.append((path, module))

        return note

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        path, _ = stack.pop()
        events.append(Event(path, module, stack[-1], False, _sketch(call, output)))

    below = {id(m): (join(call.path, path) if path else call.path, m) for path, m, _ in walk(call.module)}
    hooks: list[Any] = []
    for path, module in below.values():
        if module is not call.module:
            hooks.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            hooks.append(module.register_forward_hook(leave))
    try:
        run_in_a_row(call, training, seed, times)
    finally:
        for hook in hooks:
            hook.remove()
    return events


def _sketch(call: Call, value: Any) -> Sketch:
    return call.sketcher(dict(tensors_with_path(value)))
