"""One of two real processes, started by torchrun; what it finds goes to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from engine_toy import OPTIM, ToyModel, tensors_of, toy_trainer

from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook, TimedCheckpointHook
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.testing.evaluator import interleave
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_seed
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


class Thaws(Hook):
    """Lets a frozen part train from the second epoch on: optimizer and DDP are made anew."""

    def before_epoch(self, trainer):
        if trainer.epoch == 1:
            distributed.unwrap(trainer.model).head.requires_grad_(True)
            trainer.rebuild(build_optimizer(distributed.unwrap(trainer.model), OPTIM))


class Corrupts(Hook):
    """Changes one frozen weight, on rank 1 alone."""

    def after_epoch(self, trainer):
        if distributed.rank() == 1:
            with torch.no_grad():
                distributed.unwrap(trainer.model).vfe[0].weight[0] += 1


def make(
    out: Path, world: distributed.World, name: str, entries: list[str], hooks=(), head=True, **more
) -> Trainer:
    """The order of tools/train.py, with other initial weights on each rank: DDP must make them one."""
    torch.manual_seed(world.rank)
    model = ToyModel()
    model.head.requires_grad_(head)
    made = hooks_from_cfg({"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": entries}}, model)
    hooks = [*hooks, *made, CheckpointHook(out / name), TimedCheckpointHook(out / name, 0)]
    trainer = toy_trainer(hooks, model=model, rank=world.rank, world=world.size, **more)
    set_seed(world.rank)
    return trainer


def train(trainer: Trainer) -> dict:
    trainer.rebuild(trainer.optimizer)
    before = tensors_of(distributed.unwrap(trainer.model))
    trainer.run()
    after = tensors_of(distributed.unwrap(trainer.model))
    return {"before": before, "after": after, "iterations": trainer.iteration}


def train_in_two_parts(out: Path, world: distributed.World) -> dict:
    train(make(out, world, "parts", ["vfe"], max_iters=3))
    state = load_checkpoint(out / "parts" / "checkpoint_epoch_2.pth")
    trainer = make(out, world, "parts", ["vfe"])
    load_model_state(trainer.model, state["model_state"], "parts")
    resume(trainer, state)
    return train(trainer)


def verdict(trainer: Trainer) -> str:
    try:
        train(trainer)
    except CertificateError as error:
        return str(error)
    return "no error"


def main() -> None:
    out = Path(sys.argv[1])
    world = distributed.start("pytorch", device="cpu")
    found = {
        "plain": train(make(out, world, "plain", [])),
        "frozen": train(make(out, world, "frozen", ["vfe"])),
        "thawed": train(make(out, world, "thawed", [], [Thaws()], head=False)),
        "parts": train_in_two_parts(out, world),
        "verdict": verdict(make(out, world, "corrupted", ["vfe"], [Corrupts()])),
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
