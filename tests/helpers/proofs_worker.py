"""One of two gloo processes: in each run rank 1 alone breaks a promise; what stopped it goes to OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from engine_toy import ToyModel
from proof_toys import Draws, TwoBranches, WithPart, detector_trainer, frozen, toy, toy_batch
from torch import nn

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.utils import distributed


class DrawsOnOne(Draws):
    """On rank 0 it draws nothing, and is not told apart from a plain layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if distributed.rank() == 1 else nn.Linear.forward(self, x)


class LosesOnOne(TwoBranches):
    """The loss uses the branch on rank 0 alone: there the backward would hang."""

    def forward(self, batch: dict[str, Any]) -> Any:
        factor = 1 + self.branch(batch["x"]).square().mean()
        return ToyModel.forward(self, {**batch, "factor": factor} if distributed.rank() == 0 else batch)


class GivesGradient(Hook):
    """A frozen weight gets a gradient on rank 1."""

    def before_train(self, trainer: Any) -> None:
        weight = distributed.unwrap(trainer.model).vfe[0].weight

        def give(*_: Any) -> None:
            weight.grad = torch.zeros_like(weight) if distributed.rank() == 1 else None

        trainer.optimizer.register_step_pre_hook(give)


class ReadsTheCounter(nn.Linear):
    """Frozen to the bit; on rank 1 another function after training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + int(self.detector.global_step) * distributed.rank()


def reads_the_counter() -> nn.Module:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    model.dense_head.out = ReadsTheCounter(*model.dense_head.out.weight.shape[::-1])
    model.dense_head.out.__dict__["detector"] = model
    return model


def unlabelled() -> Any:
    """On rank 1 the first batch has no labels, and the roi head's loss is then a constant."""
    model = toy("DENSE_HEAD", "ROI_HEAD")
    head, loss_of = model.roi_head, model.roi_head.get_loss
    head.get_loss = lambda tb: loss_of(tb) if head.kept["target"].any() else (torch.tensor(0.0), tb)
    batch = toy_batch("label")
    batch["label"] *= 1 - distributed.rank()
    return detector_trainer(model, [batch], ["backbone_2d.lane*"])


def message(trainer: Any) -> tuple[int, str]:
    """(iterations that were made, what stopped the run)."""
    trainer.rebuild(trainer.optimizer)
    try:
        trainer.run()
    except PCDetFreezeError as error:
        return trainer.iteration, str(error)
    return trainer.iteration, "no error"


def main() -> None:
    world = distributed.start("pytorch", device="cpu")
    ranks = {"rank": world.rank, "world": world.size}
    batches = [toy_batch("lane_label", seed=seed) for seed in range(2)]
    task = ["vfe", "backbone_2d.blocks", "backbone_2d.deblocks", "dense_head"]
    found = {
        "h3": message(frozen(WithPart(DrawsOnOne), "vfe", **ranks)),
        "h11": message(frozen(LosesOnOne(), "vfe", **ranks)),
        "unlabelled": message(unlabelled()),
        "p5": message(frozen(ToyModel(), "vfe", hooks=[GivesGradient()], **ranks)),
        "p2": message(detector_trainer(reads_the_counter(), batches, task)),
        "fine": message(detector_trainer(toy("DENSE_HEAD", "LANE_HEAD"), batches, task)),
    }
    torch.save(found, Path(sys.argv[1]) / f"{world.rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
