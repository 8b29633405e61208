"""One of two real processes, started by torchrun; what it finds goes to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from engine_toy import OPTIM, ToyModel, tensors_of, toy_trainer

from pcdet_freeze.engine import distributed
from pcdet_freeze.engine.checkpoint_hook import CheckpointHook, TimedCheckpointHook
from pcdet_freeze.engine.configured import hooks_from_cfg
from pcdet_freeze.engine.evaluate import interleave
from pcdet_freeze.engine.hooks import Hook
from pcdet_freeze.engine.optimizer import build_optimizer
from pcdet_freeze.engine.rng import set_seed


class Thaws(Hook):
    """Lets a frozen part train from the second epoch on: optimizer and DDP are made anew."""

    def before_epoch(self, trainer):
        if trainer.epoch == 1:
            distributed.unwrap(trainer.model).head.requires_grad_(True)
            trainer.rebuild(build_optimizer(distributed.unwrap(trainer.model), OPTIM))


def train(out: Path, world: distributed.World, name: str, entries: list[str], hooks=(), head=True) -> dict:
    torch.manual_seed(world.rank)  # other initial weights on each rank: DDP must make them one
    model = ToyModel()
    model.head.requires_grad_(head)
    made = hooks_from_cfg({"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": entries}}, model)
    hooks = [*hooks, *made, CheckpointHook(out / name), TimedCheckpointHook(out / name, 0)]
    trainer = toy_trainer(hooks, model=model, rank=world.rank, world=world.size)
    trainer.rebuild(trainer.optimizer)
    set_seed(world.rank)
    before = tensors_of(distributed.unwrap(trainer.model))
    trainer.run()
    return {
        "before": before,
        "after": tensors_of(distributed.unwrap(trainer.model)),
        "iterations": trainer.iteration,
    }


def main() -> None:
    out = Path(sys.argv[1])
    world = distributed.start("pytorch", device="cpu")
    found = {
        "plain": train(out, world, "plain", []),
        "frozen": train(out, world, "frozen", ["vfe"]),
        "thawed": train(out, world, "thawed", [], [Thaws()], head=False),
        "gathered": distributed.gather(world.rank * 10),
        "from_main": distributed.from_main(f"rank {world.rank}"),
        "sum": distributed.reduce_sum({"a": 1.0 + world.rank, f"only{world.rank}": 1.0}),
        "merged": interleave(
            distributed.gather([{"frame_id": i % 5} for i in range(world.rank, 6, world.size)]), 5
        ),
    }
    torch.save(found, out / f"{world.rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
