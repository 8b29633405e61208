"""Figures of one training step that do not depend on the machine or on what else runs on it."""

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
    """Compiled functions run as they are written, where torch can do that: counters see into them then."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def count_flops(step: Step) -> int:
    """Floating point operations of ``step``, forward and backward; a multiplication and an addition are two.

    Matrix products and convolutions count, as ``torch.utils.flop_counter`` does; element-wise work, norm
    layers, the optimizer and custom kernels (spconv) do not.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def count_saved_bytes(step: Step, existing: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that the graph of ``step`` holds for the backward pass at the moment that it begins.

    Each storage counts once and whole, however many nodes and views share it. Those of ``existing`` do not
    count: parameters, buffers and the batch are there with or without a graph.
    """
    saved = _Saved(existing)
    with saved_tensors_hooks(saved.pack, saved.unpack):
        step()
    return saved.finish()


class _Packed:
    """What a node of the graph holds in place of a tensor; it lives as long as the node needs it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()


class _Saved:
    """Counts what is packed and still alive when the first tensor is unpacked."""

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
        """Count, the first time; the same number ever after."""
        if self.total is None:
            held = {id(storage): storage for storage in storages(packed.tensor for packed in self.living)}
            self.total = sum(s.nbytes() for key, s in held.items() if key not in self.existing)
        return self.total


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in optimizer_tensors(optimizer))


def checkpoint_bytes(trainer: Trainer) -> int:
    """Size of the file that a checkpoint of ``trainer`` would be."""
    file = io.BytesIO()
    torch.save(checkpoint_state(trainer), file)
    return file.tell()
