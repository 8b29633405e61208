"""A ten-line model and data set that go through the real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils.rng import set_seed

OPTIM = {
    "OPTIMIZER": "adam_onecycle", "LR": 0.01, "WEIGHT_DECAY": 0.01, "MOMENTUM": 0.9, "MOMS": [0.95, 0.85],
    "PCT_START": 0.4, "DIV_FACTOR": 10, "DECAY_STEP_LIST": [1], "LR_DECAY": 0.1, "LR_CLIP": 1e-7,
    "LR_WARMUP": False, "WARMUP_EPOCH": 1, "GRAD_NORM_CLIP": 10,
}  # fmt: skip


class ToyModel(nn.Module):
    """vfe -> head, with a norm layer and a dropout; called as a detector is."""

    def __init__(self) -> None:
        super().__init__()
        self.vfe = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 1)
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.long))

    def update_global_step(self) -> None:
        self.global_step += 1

    def forward(self, batch: dict[str, Any]) -> Any:
        value = self.head(self.vfe(batch["x"])).squeeze(1)
        if not self.training:
            return value, {}
        loss = ((value - batch["y"]) ** 2).mean() * batch.get("factor", 1.0)
        return {"loss": loss}, {"mse": loss.item()}, {}


class ToyData(Dataset):
    """Eight samples, each a pure function of its index."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(index)
        return {"x": torch.randn(4, generator=draw), "y": torch.randn((), generator=draw)}


class ToySampler(torch.utils.data.Sampler):
    """An order that is a function of the epoch; it can start in the middle."""

    def __init__(self, length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_iter: int = 0) -> None:
        self.epoch, self.start = epoch, start_iter * self.batch_size

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Any:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        return iter(order[self.rank :: self.world][self.start :])


def toy_trainer(
    hooks: Any = (),
    *,
    epochs: int = 2,
    optimizer: str = "adam_onecycle",
    model: Any = None,
    batch_size: int = 2,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    lr_scaled: Any = (),
    **more: Any,
) -> Trainer:
    """Four iterations an epoch, unless ``batch_size`` says otherwise."""
    set_seed(seed)
    model = model or ToyModel()
    sampler = ToySampler(8, batch_size, rank, world)
    loader = DataLoader(ToyData(), batch_size=batch_size, sampler=sampler)
    cfg = {**OPTIM, "OPTIMIZER": optimizer}
    made = build_optimizer(model, cfg, lr_scaled)
    schedule = build_scheduler(made, epochs * len(loader), len(loader), cfg)
    return Trainer(
        model, made, schedule, loader, epochs=epochs, hooks=hooks, sampler=sampler, clip_norm=10.0, **more
    )


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(a: Any, b: Any) -> None:
    """Equal to the bit, whatever the nesting of dicts, lists and tensors."""
    if torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same_state(left, right)
    else:
        assert a == b


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
