"""One of two gloo processes with two micro-batches a step; rank 0 writes to OUT/0.pt."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engine_toy import OPTIM
from rank_cases import four_frames, frames_of, held, three_tasks, whole_error
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed

reduced = 0


def counting(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP reads the annotations themselves: no ``from __future__ import annotations`` here."""
    global reduced
    reduced += 1
    return allreduce_hook(state, bucket)


def trainer_of() -> Trainer:
    """A trainer of the detector with three tasks, with norm layers in eval mode."""
    model, cfg = three_tasks(), {**OPTIM, "OPTIMIZER": "sgd"}
    model.train = lambda mode=True: held_train(model, mode)
    optimizer = build_optimizer(model, cfg)
    return Trainer(model, optimizer, build_scheduler(optimizer, 10, 10, cfg), [None], epochs=1)


def held_train(model: Any, mode: bool) -> Any:
    torch.nn.Module.train(model, mode)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    named = distributed.unwrap(trainer.model).named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def main() -> None:
    world, whole, results = distributed.start("pytorch", device="cpu"), four_frames(), {}
    own = [frames_of(whole, (2 * world.rank + number,)) for number in range(2)]
    trainer = trainer_of()
    trainer.rebuild(trainer.optimizer)
    trainer.model.register_comm_hook(None, counting)  # type: ignore[operator]
    trainer.step(*own)
    results["reduced, accumulate 2"], found = reduced, gradients(trainer)
    for batch in own:
        trainer.step(batch)
    results["reduced, one by one"] = reduced - results["reduced, accumulate 2"]
    alone = trainer_of()
    distributed.unwrap(alone.model).loss_normalization.across_ranks = False
    held(alone.model)
    alone.step(frames_of(whole, (0, 1, 2, 3)))
    results["error"] = whole_error(found, gradients(alone))
    if world.is_main:
        torch.save(results, Path(sys.argv[1]) / "0.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
