"""One of two gloo processes: this rank's batches may lack all labels of a task; writes to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from task_cases import bare, task_batch, task_config, task_model

from pcdet_freeze.utils import distributed

LABELS = ("gt_boxes", "point_labels", "lane_map")


def batch_of(rank: int, step: int) -> dict[str, Any]:
    """Rank 1 has no labels of task ``step``; in the last step it has none at all."""
    given = task_batch(seed=10 * step + rank)
    missing = LABELS if step == len(LABELS) else LABELS[step : step + 1]
    return bare(given, *missing) if rank == 1 else given


def train(world: distributed.World) -> dict[str, Any]:
    config = task_config("segment", "lane") | {"LEARN_LOSS_WEIGHTS": True}
    model = task_model(config=config, seed=world.rank)
    model.measure_gradients = True
    wrapped = distributed.wrap(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    told = []
    for step in range(len(LABELS) + 1):
        wrapped.train()
        optimizer.zero_grad()
        result, figures, _ = wrapped(batch_of(world.rank, step))
        result["loss"].backward()
        optimizer.step()
        told.append(figures)
    distributed.share_buffers(model)
    return {"told": told, "state": model.state_dict(), "find_unused": wrapped.find_unused_parameters}


def main() -> None:
    world = distributed.start("pytorch", device="cpu")
    torch.save(train(world), Path(sys.argv[1]) / f"{world.rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
