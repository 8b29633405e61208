"""Figures of one training step that do not depend on the machine or its load: FLOPs and bytes."""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pcdet_freeze.engine.checkpoint.io import checkpoint_state
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils.memory import Step, optimizer_tensors, storages


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled functions eagerly (torch >= 2.6), so that counters see their operators."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def count_flops(step: Step) -> int:
    """Count floating point operations of ``step``, forward and backward; a multiply-add counts as two.

    Matrix products and convolutions count, as ``torch.utils.flop_counter`` does; element-wise work, norm
    layers, the optimizer and custom kernels (spconv) do not.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def count_saved_bytes(step: Step, existing: Iterable[torch.Tensor] = ()) -> int:
    """Count the bytes that the autograd graph of ``step`` holds when its backward pass begins.

    Each storage counts once, with its full size, however many nodes and views share it. Storages of
    ``existing`` (parameters, buffers, batch) do not count: they exist with or without a graph.
    """
    saved = _Saved(existing)
    with saved_tensors_hooks(saved.pack, saved.unpack):
        step()
    return saved.finish()


class _Packed:
    """Stands for a saved tensor in a node of the graph, and lives as long as the node needs it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()


class _Saved:
    """Counts packed tensors that are alive when the first one is unpacked."""

    def __init__(self, existing: Iterable[torch.Tensor]) -> None:
        self.living: weakref.WeakSet[_Packed] = weakref.WeakSet()
        self.existing = {id(storage): storage for storage in storages(existing)}
        self.total: int | None = None

    def pack(self, tensor: torch.Tensor) -> _Packed:
        packed = _Packed(tensor)
        self.living.add(packed)
        return packed

    def unpack(self, packed: _Packed) -> torch.Tensor:
        self.finish()
        return packed.tensor

    def finish(self) -> int:
        """Count once; later calls return the same number."""
        if self.total is None:
            held = {id(storage): storage for storage in storages(packed.tensor for packed in self.living)}
            self.total = sum(s.nbytes() for key, s in held.items() if key not in self.existing)
        return self.total


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in optimizer_tensors(optimizer))


def checkpoint_bytes(trainer: Trainer) -> int:
    """Size in bytes of a checkpoint file of ``trainer``."""
    file = io.BytesIO()
    torch.save(checkpoint_state(trainer), file)
    return file.tell()
