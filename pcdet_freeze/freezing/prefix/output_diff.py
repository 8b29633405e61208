"""What chosen modules put out in one forward, to compare two ways of computing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.prefix.tensor_values import tensors_of

Outputs = dict[str, list[Tensor]]
"""Path -> the tensors that its calls put out, in order."""


@contextmanager
def recorded(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Outputs]:
    """Copies of what each of ``modules`` puts out, as long as none of the others called it."""
    found: Outputs = {}
    depth: list[int] = []
    hooks: list[Any] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        depth.append(len(depth))
        given.append({id(tensor) for tensor in tensors_of((args, kwargs))})

    def leave_as(path: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            depth.pop()
            known = given.pop()
            if not depth:
                # a dict that is filled on its way through the modules holds what others wrote, too
                new = [t for t in tensors_of(output) if isinstance(output, Tensor) or id(t) not in known]
                found.setdefault(path, []).extend(tensor.detach().clone() for tensor in new)

        return leave

    given: list[set[int]] = []
    for path, module in modules:
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave_as(path), always_call=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest :func:`relative` difference of two lists of tensors; infinite where they do not fit."""
    if len(before) != len(after):
        return float("inf")
    return max((relative(a, b) for a, b in zip(before, after, strict=True)), default=0.0)


def relative(a: Tensor, b: Tensor) -> float:
    """|b - a| / |a| (L2, in float64); infinite where they do not fit."""
    if a.shape != b.shape:
        return float("inf")
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    left, right = a.detach().double(), b.detach().double()
    size, off = float(left.norm()), float((right - left).norm())
    return off / size if size else (0.0 if off == 0 else float("inf"))
