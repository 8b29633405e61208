"""One of two gloo processes: savings measured, and not; and on rank 0 alone, with a SyncBatchNorm frozen."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from engine_toy import OPTIM, tensors_of
from savings_toy import WideVfe, trainer_of
from torch import nn

from pcdet_freeze.engine.hooks.savings import SavingsHook, measure
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.prefix import Options
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_seed

EPOCHS = 600


def run(trainer: Trainer) -> dict[str, torch.Tensor]:
    set_seed(distributed.rank())
    trainer.rebuild(trainer.optimizer)
    trainer.run()
    return tensors_of(distributed.unwrap(trainer.model))


def model() -> nn.Module:
    torch.manual_seed(0)
    return WideVfe()


def alone() -> str:
    """Unfrozen, a SyncBatchNorm waits for the other ranks (an error on a CPU): here nobody else comes."""
    trainer = trainer_of(nn.SyncBatchNorm.convert_sync_batchnorm(model()))
    batch = {"x": torch.ones(3, 4), "y": torch.ones(3)}
    return str(measure(trainer, batch, Options(), OPTIM))


def main() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("savings").addHandler(handler)
    logging.getLogger("savings").setLevel(logging.INFO)
    world = distributed.start("pytorch", device="cpu")
    trainers = {
        "plain": trainer_of(model(), epochs=EPOCHS),
        "off": trainer_of(model(), epochs=EPOCHS),
    }
    trainers["off"].hooks = [hook for hook in trainers["off"].hooks if not isinstance(hook, SavingsHook)]
    found: dict[str, Any] = {name: run(trainer) for name, trainer in trainers.items()}
    found["measured"] = {name: "freezing_saves" in one.results for name, one in trainers.items()}
    found["said"] = said
    found["alone"] = alone() if distributed.rank() == 0 else ""
    torch.save(found, Path(sys.argv[1]) / f"{world.rank}.pt")
    trainers.clear()
    distributed.stop()


if __name__ == "__main__":
    main()
