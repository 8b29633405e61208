"""Finding the border of a model's cached part, on copies, and proving that it can be kept by samples."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.paths import unwrap
from pcdet_freeze.freezing.prefix.boundary import Boundary, BoundaryTrace, Slot
from pcdet_freeze.freezing.prefix.cached_forward import CachedForward
from pcdet_freeze.freezing.prefix.no_grad_call import is_plain_float32
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.prefix.tracer import Trace
from pcdet_freeze.freezing.prefix.validate import output_error
from pcdet_freeze.utils.tensors import tensors_of

SAME = 1e-4
"""relative difference (L2) between a sample among others and repeated, in float32: other kernels may run"""
SAME_LOOSE = 3e-2
"""the same where 16 bits are in it"""
Batch = dict[str, Any]


class Kept:
    """A keeper in memory."""

    def __init__(self, values: dict[Slot, Tensor] | None = None) -> None:
        self.supplies, self.values = values is not None, values or {}

    def take(self, slot: Slot, value: Tensor) -> Tensor:
        self.values[slot] = value.detach().clone()
        return value

    def give(self, slot: Slot) -> Tensor:
        return self.values[slot].clone()

    def finish(self) -> None:
        """Nothing is left to do."""


def find_boundary(
    model: nn.Module,
    plan: Plan,
    options: Options,
    batch: Batch,
    one_of: Callable[[Batch], Batch],
) -> tuple[Boundary, dict[Slot, Tensor]]:
    """The border in training forwards of ``model`` on batches such as ``batch``, and what crosses it there.

    Args:
        plan: how its prefix runs.
        batch: a batch_dict with ``batch_size``; it is not changed.
        one_of: makes of a batch one of another size that holds its last sample again and again.

    Copies of the model run, and random generators go on.
    """
    root = unwrap(model)
    live = _live_calls(copy.deepcopy(root), batch)
    twin, given = copy.deepcopy(root), copy.deepcopy(batch)
    with BoundaryTrace(twin, live, plan.prefix, list(given.values())) as trace:
        result = twin(given)
    border = trace.border(result, batch["batch_size"])
    del trace
    if border.refused:
        return border, {}
    run = _Runs(root, plan, options, border)
    whole, kept = run(batch, Kept())
    alone = one_of(copy.deepcopy(batch))
    try:
        again, _ = run(batch, Kept(kept.values))
        _, single = run(alone, Kept(), seed=1)
    except Exception as error:  # whatever it is, it is told with the refusal
        fault = f"a copy could not be run on kept outputs, or on one sample repeated ({error!r})"
        return replace(border, refused=(fault,)), {}
    limit = SAME if is_exact(root, options) else SAME_LOOSE
    refused = [] if output_error(whole, again) <= limit else ["the loss differs when they are supplied"]
    for slot, value in kept.values.items():
        refused += _split_fault(slot, value[-1:], single.values.get(slot), alone["batch_size"], limit)
    return replace(border, refused=tuple(refused)), kept.values


def is_exact(model: nn.Module, options: Options) -> bool:
    """Whether the prefix computes in float32 here and now, without autocast and TF32."""
    return options.is_exact and is_plain_float32(model)


def _live_calls(twin: nn.Module, batch: Batch) -> set[tuple[str, int]]:
    times: Counter[str] = Counter()
    live = set()
    with Trace(twin) as trace:
        twin(copy.deepcopy(batch))
    for call in trace.calls:
        if call.reads_live:
            live.add((call.path, times[call.path]))
        times[call.path] += 1
    return live


class _Runs:
    """Runs of copies of a model, each from the same state and the same seed."""

    def __init__(self, root: nn.Module, plan: Plan, options: Options, border: Boundary) -> None:
        self.root, self.how = root, (plan, options, border)

    def __call__(self, batch: Batch, keeper: Kept, seed: int = 0) -> tuple[list[Tensor], Kept]:
        twin = copy.deepcopy(self.root)
        torch.manual_seed(seed)
        with torch.no_grad(), CachedForward(twin, *self.how, keeper):
            result = twin(copy.deepcopy(batch))
        return [tensor.detach() for tensor in tensors_of(result)], keeper


def _split_fault(slot: Slot, row: Tensor, alone: Tensor | None, count: int, limit: float) -> list[str]:
    """What is wrong with ``slot``, where ``row``'s sample, ``count`` times over, gave ``alone``."""
    if alone is None or alone.shape != (count, *slot.shape):
        shape = None if alone is None else tuple(alone.shape)
        return [f"{slot.name} has shape {(count, *slot.shape)} in one batch and {shape} in another"]
    off = max(output_error([row], [other]) for other in alone.split(1))
    if off <= limit:
        return []
    return [f"{slot.name} is random, or depends on the other samples of the batch (it differs by {off:.1e})"]
