"""One of two gloo processes: rank 1 has a NaN in the third iteration; writes to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from engine_toy import ToyModel, toy_trainer

from pcdet_freeze.engine.finite_guard import FiniteGuard
from pcdet_freeze.engine.trainer import NonFiniteLossError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.distributed import unwrap

CASES = {
    "gradient, at once": ("gradient", FiniteGuard()),
    "gradient, late": ("gradient", FiniteGuard(deferred=True)),
    "loss, at once": ("loss", FiniteGuard()),
    "loss, late": ("loss", FiniteGuard(deferred=True)),
    "skip": ("loss", FiniteGuard(skip=True, deferred=True)),
}


class OneBad(ToyModel):
    """NaN in the gradient or in the loss of rank 1, in its third forward."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0

    def forward(self, batch: dict[str, Any]) -> Any:
        is_bad, self.calls = self.calls == 2 and distributed.rank() == 1, self.calls + 1
        loss = ((self.head(self.vfe(batch["x"])).squeeze(1) - batch["y"]) ** 2).mean()
        if is_bad and self.kind == "loss":
            loss = loss * float("nan")
        if is_bad and self.kind == "gradient":
            loss = loss + self.head.bias.sub(self.head.bias.detach()).abs().sqrt().sum()
        return {"loss": loss}, {}, {}


class NameFrames:
    """Names the frame of each batch by rank and number."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, batch: dict[str, Any], device: torch.device) -> None:
        batch["frame_id"] = [f"{distributed.rank()}-{self.batches}"]
        self.batches += 1


def train(kind: str, guard: FiniteGuard, world: distributed.World) -> dict[str, Any]:
    trainer = toy_trainer(
        model=OneBad(kind),
        guard=guard,
        rank=world.rank,
        world=world.size,
        optimizer="adam",
        move=NameFrames(),
    )
    trainer.rebuild(trainer.optimizer)
    error = ""
    try:
        trainer.run()
    except NonFiniteLossError as found:
        error = str(found)
    parameters = {n: p.detach().clone() for n, p in unwrap(trainer.model).named_parameters()}
    return {
        "error": error,
        "parameters": parameters,
        "iteration": trainer.iteration,
        "skipped": guard.skipped,
    }


def main() -> None:
    world = distributed.start("pytorch", device="cpu")
    results = {name: train(*case, world) for name, case in CASES.items()}
    torch.save(results, Path(sys.argv[1]) / f"{world.rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
