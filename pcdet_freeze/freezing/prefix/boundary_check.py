"""Find the boundary of the cached part on copies of a model, and check that it can be cached by sample."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.entries.paths import unwrap
from pcdet_freeze.freezing.prefix.boundary import Boundary, BoundaryTrace, Slot
from pcdet_freeze.freezing.prefix.cached_forward import CachedForward
from pcdet_freeze.freezing.prefix.no_grad_call import is_plain_float32
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.prefix.tracer import Trace
from pcdet_freeze.freezing.prefix.validate import output_error
from pcdet_freeze.utils.tensors import tensors_of

SAME = 1e-4
"""limit of the relative error (L2) of a sample in another batch, in float32: other kernels may run"""
SAME_LOOSE = 3e-2
"""the same with 16-bit arithmetic"""
Batch = dict[str, Any]


class MemoryRecorder:
    """An :class:`OutputRecorder` in memory: records outputs, or supplies those given."""

    def __init__(self, values: dict[Slot, Tensor] | None = None) -> None:
        self.supplies, self.values = values is not None, values or {}

    def take(self, slot: Slot, value: Tensor) -> Tensor:
        self.values[slot] = value.detach().clone()
        return value

    def give(self, slot: Slot) -> Tensor:
        return self.values[slot].clone()

    def finish(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


def find_boundary(
    model: nn.Module,
    plan: Plan,
    options: Options,
    batch: Batch,
    one_of: Callable[[Batch], Batch],
) -> tuple[Boundary, dict[Slot, Tensor]]:
    """Find the boundary in training forwards of ``model``, and the tensors that cross it for ``batch``.

    Copies of the model run; random generators advance.

    Args:
        plan: plan of the frozen prefix.
        batch: a batch_dict with ``batch_size``; it is not changed.
        one_of: makes a batch of another size that repeats the last sample of a batch.
    """
    root = unwrap(model)
    live = _live_calls(copy.deepcopy(root), batch)
    twin, given = copy.deepcopy(root), copy.deepcopy(batch)
    with BoundaryTrace(twin, live, plan.prefix, list(given.values())) as trace:
        result = twin(given)
    boundary = trace.boundary(result, batch["batch_size"])
    del trace
    if boundary.refused:
        return boundary, {}
    run = _Runs(root, plan, options, boundary)
    whole, kept = run(batch, MemoryRecorder())
    alone = one_of(copy.deepcopy(batch))
    try:
        again, _ = run(batch, MemoryRecorder(kept.values))
        _, single = run(alone, MemoryRecorder(), seed=1)
    except Exception as error:  # the refusal reports it
        fault = f"a copy could not be run on recorded outputs, or on one repeated sample ({error!r})"
        return replace(boundary, refused=(fault,)), {}
    limit = SAME if is_exact(root, options) else SAME_LOOSE
    refused = (
        [] if output_error(whole, again) <= limit else ["the loss differs when the stored outputs are used"]
    )
    for slot, value in kept.values.items():
        refused += _split_fault(slot, value[-1:], single.values.get(slot), alone["batch_size"], limit)
    return replace(boundary, refused=tuple(refused)), kept.values


def is_exact(model: nn.Module, options: Options) -> bool:
    """Whether the prefix computes in float32 now, without autocast and TF32."""
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
    """Runs copies of a model, each from the same state."""

    def __init__(self, root: nn.Module, plan: Plan, options: Options, boundary: Boundary) -> None:
        self.root, self.how = root, (plan, options, boundary)

    def __call__(
        self, batch: Batch, recorder: MemoryRecorder, seed: int = 0
    ) -> tuple[list[Tensor], MemoryRecorder]:
        twin = copy.deepcopy(self.root)
        torch.manual_seed(seed)
        with torch.no_grad(), CachedForward(twin, *self.how, recorder):
            result = twin(copy.deepcopy(batch))
        return [tensor.detach() for tensor in tensors_of(result)], recorder


def _split_fault(slot: Slot, row: Tensor, alone: Tensor | None, count: int, limit: float) -> list[str]:
    """Why ``slot`` cannot be cached: a sample gave ``row`` in a batch, and ``alone`` when repeated."""
    if alone is None or alone.shape != (count, *slot.shape):
        shape = None if alone is None else tuple(alone.shape)
        return [f"{slot.name} has shape {(count, *slot.shape)} in one batch and {shape} in another"]
    off = max(output_error([row], [other]) for other in alone.split(1))
    if off <= limit:
        return []
    return [f"{slot.name} is random, or depends on the other samples of the batch (it differs by {off:.1e})"]
