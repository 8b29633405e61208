"""Models whose own code breaks a promise, and a trainer for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_toy import OPTIM, ToyModel, assert_same_state, tensors_of, toy_trainer
from torch import nn
from torch.nn import functional as F
from toy_parts import toy, toy_batch

from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import FreezeError

__all__ = ["toy", "toy_batch"]


class Draws(nn.Linear):
    """Drops inputs by its own code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x, 0.5, self.training))


class BatchStatistics(nn.Linear):
    """Normalises by its own code: with the batch while training, with its buffers in eval."""

    tracks = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mean", torch.full((outputs,), 0.5))
        self.register_buffer("var", torch.full((outputs,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        if self.training and not self.tracks:
            return F.batch_norm(x, None, None, training=True)
        return F.batch_norm(x, self.mean, self.var, training=self.training)


class TracksStatistics(BatchStatistics):
    tracks = True


class Remembers(nn.Linear):
    """Keeps what a loss will read, and how often it ran."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.kept: dict[str, Any] = {}
        self.ran = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.ran += 1
        self.kept["x"] = x
        return super().forward(x)


class WithPart(ToyModel):
    """ToyModel with another first layer, in a parent of its own."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.vfe[0] = nn.Sequential(nn.Linear(4, 4), kind(4, 8))


class TwoBranches(ToyModel):
    """A branch that no loss uses, besides one that a loss uses for labelled batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def forward(self, batch: dict[str, Any]) -> Any:
        self.branch(batch["x"])
        return super().forward(batch)


def frozen(model: nn.Module, *entries: str, hooks: Any = (), **more: Any) -> Trainer:
    """The order of tools/train.py: model, freeze, optimizer."""
    options = more.pop("options", {})
    return toy_trainer([*hooks, *hooks_from_cfg(_cfg(entries, options), model)], model=model, **more)


def _cfg(entries: Any, options: Any) -> dict[str, Any]:
    return {
        "MODEL": {"NOT_TRAIN_IN_MULTI_TASK": list(entries), "FREEZE": options},
        "OPTIMIZATION": OPTIM,
    }


class Loader(list):
    """Batches of an epoch; each time that it is asked it gives fresh copies, as a loader does."""

    def __iter__(self) -> Any:
        return iter(
            [{k: v.clone() if torch.is_tensor(v) else v for k, v in b.items()} for b in list.copy(self)]
        )


def detector_trainer(
    model: nn.Module, batches: list[Any], entries: list[str], hooks: Any = (), epochs: int = 1, **more: Any
) -> Trainer:
    """A trainer of a detector of toy parts."""
    options = more.pop("options", {})
    made = hooks_from_cfg(_cfg(entries, options), model)
    optimizer = build_optimizer(model, OPTIM)
    schedule = build_scheduler(optimizer, epochs * len(batches), len(batches), OPTIM)
    return Trainer(model, optimizer, schedule, Loader(batches), epochs=epochs, hooks=[*hooks, *made], **more)


def refusal(trainer: Any) -> str:
    """Why the run stopped; nothing may have moved by then."""
    before = tensors_of(trainer.model.head)
    with pytest.raises(FreezeError) as stopped:
        trainer.run()
    assert trainer.iteration == 0
    assert_same_state(tensors_of(trainer.model.head), before)
    return str(stopped.value)
