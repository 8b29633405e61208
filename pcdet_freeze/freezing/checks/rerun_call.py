"""Run a recorded call of a module again, with another seed or mode, and find the submodule that differs.

A rerun leaves the module, its buffers and all random generators as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.eval_lock import eval_mode
from pcdet_freeze.freezing.paths import join, walk
from pcdet_freeze.utils.rng import set_seed, untouched_rng
from pcdet_freeze.utils.tensors import clone_detached, relative_error, same_bits, tensors_with_path


@dataclass
class Call:
    """The first outermost call of a frozen module in the first training forward."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    training: bool
    """requested mode; a frozen head may run in eval mode"""


def run(call: Call, seed: int, training: bool) -> Any:
    """The output of the call's module on the call's inputs.

    Other hooks of the module run in this call too.
    """
    return run_in_a_row(call, seed, training, 1)[0]


def run_in_a_row(call: Call, seed: int, training: bool, times: int = 2) -> list[Any]:
    """As :func:`run`, several times, each with ``seed``; state is restored after the last run only."""
    mode = nullcontext() if training else eval_mode(call.module)
    outputs = []
    with torch.no_grad(), untouched_rng(), _same_attributes(call.module), same_buffers(call.module), mode:
        for _ in range(times):
            set_seed(seed)
            output = call.module(*clone_detached(call.args), **clone_detached(call.kwargs))
            outputs.append(clone_detached(output) if times > 1 else output)  # the next run may write into it
    return outputs


@contextmanager
def _same_attributes(module: nn.Module) -> Iterator[None]:
    """Restore attributes that a forward stores for a loss to read, such as ``self.forward_ret_dict``."""
    kept = [(part, _own_attributes(part)) for part in module.modules()]
    values = [value for _, own in kept for value in own.values() if type(value) in (dict, list)]
    contents = [(value, value.copy()) for value in values]
    try:
        yield
    finally:
        for part, own in kept:
            for name in _own_attributes(part):
                del part.__dict__[name]
            part.__dict__.update(own)
        for value, content in contents:
            value.clear()
            value.update(content) if isinstance(value, dict) else value.extend(content)


@contextmanager
def same_buffers(module: nn.Module) -> Iterator[None]:
    """Restore buffers that a forward changes or replaces (those of FREEZE.IGNORE may change)."""
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    values = [(buffer, buffer.clone()) for _, own in kept for buffer in own.values() if buffer is not None]
    try:
        yield
    finally:
        for part, own in kept:
            part._buffers.update(own)
        for buffer, value in values:
            if not same_bits(buffer, value):
                buffer.copy_(value)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes that the module's own code sets; without torch's dicts and the training flag."""
    return {name: value for name, value in module.__dict__.items() if name not in _OF_TORCH}


_OF_TORCH = frozenset(nn.Module().__dict__)


def max_relative_error(a: Any, b: Any, common: bool = False) -> float:
    """Largest relative error (L2) between the tensors of two outputs.

    Args:
        common: compare only tensors that both have, with equal shapes: a head may return more in one mode.
    """
    left, right = dict(tensors_with_path(a)), dict(tensors_with_path(b))
    if common:
        names = [n for n, t in left.items() if n in right and right[n].shape == t.shape]
    elif left.keys() != right.keys():
        return float("inf")
    else:
        names = list(left)
    return max((relative_error(left[name], right[name]) for name in names), default=0.0)


@dataclass
class Event:
    """A module inside a call begins, with its inputs, or ends, with its outputs."""

    path: str
    module: nn.Module
    parent: tuple[str, nn.Module]
    """(path, module) whose code called it"""
    begins: bool
    tensors: dict[str, Tensor]


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
        if a.path != b.path or a.begins != b.begins:
            return a.parent[0], type(a.parent[1]).__name__
        if max_relative_error(a.tensors, b.tensors, common=True) > limit:
            path, module = a.parent if a.begins else (a.path, a.module)
            return path, type(module).__name__
    return whole


def _events(call: Call, seed: int, training: bool, times: int = 1) -> list[Event]:
    events: list[Event] = []
    stack: list[tuple[str, nn.Module]] = [(call.path, call.module)]

    def enter(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            events.append(Event(path, module, stack[-1], True, _on_cpu((args, kwargs))))
            stack.append((path, module))

        return note

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        path, _ = stack.pop()
        events.append(Event(path, module, stack[-1], False, _on_cpu(output)))

    below = {id(m): (join(call.path, path) if path else call.path, m) for path, m, _ in walk(call.module)}
    hooks: list[Any] = []
    for path, module in below.values():
        if module is not call.module:
            hooks.append(module.register_forward_pre_hook(enter(path), with_kwargs=True))
            hooks.append(module.register_forward_hook(leave))
    try:
        run_in_a_row(call, seed, training, times)
    finally:
        for hook in hooks:
            hook.remove()
    return events


def _on_cpu(value: Any) -> dict[str, Tensor]:
    return {path: tensor.detach().to("cpu", copy=True) for path, tensor in tensors_with_path(value)}
