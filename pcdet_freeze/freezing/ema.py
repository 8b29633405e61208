"""Averaging a model of which a part is frozen: that part is copied, not averaged (H5).

An average of equal numbers is not always that number: ``0.999 * x + 0.001 * x`` rounds, 0 * NaN is NaN, and a
running mean of ``num_batches_tracked`` drifts. So frozen tensors and integer buffers are copied bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from pcdet_freeze.freezing.entries.paths import walk
from pcdet_freeze.freezing.state import get_freeze_state
from pcdet_freeze.freezing.verification.certificate import frozen_tensors

Average = Callable[[list[torch.Tensor], list[torch.Tensor], "torch.Tensor | int"], None]


def copying_frozen(model: nn.Module, average: Average | None = None) -> Average:
    """An averaging function for ``AveragedModel(model, multi_avg_fn=...)`` that copies what is frozen.

    Args:
        model: the model that trains. Its frozen tensors are looked up at each update, so that freezing or
            unfreezing later counts too.
        average: averages the rest, for example ``get_ema_multi_avg_fn(0.999)``; None: the equal mean.
    """
    inner: Average = average or get_swa_multi_avg_fn()

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
        frozen = frozen_places(model)
        trainable: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for target, source in zip(averaged, current, strict=True):
            if _place(source) in frozen or not (source.is_floating_point() or source.is_complex()):
                target.copy_(source)
            else:
                trainable[0].append(target)
                trainable[1].append(source)
        if trainable[0]:
            inner(*trainable, count)

    return update


def frozen_places(model: nn.Module) -> set[tuple[int, torch.Size]]:
    """Where the frozen tensors of ``model`` lie in memory: ``AveragedModel`` hands over detached ones."""
    return {
        _place(tensor)
        for _, module, _ in walk(model)
        if (state := get_freeze_state(module)) is not None
        for request in state.requests.values()
        for _, tensor, _ in frozen_tensors(module, request, with_ignored=True)
    }


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape
