"""One of two gloo processes: gradients of two ranks and of one; rank 0 writes to OUT/errors.pt."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from rank_cases import (
    LABELS,
    SPLITS,
    center_frames,
    center_point,
    four_frames,
    frames_of,
    gradients,
    held,
    three_tasks,
    worst,
)

from pcdet_freeze.utils import distributed

EVERY = (0, 1, 2, 3)


def step(model: Any, batch: dict[str, Any]) -> float:
    model.zero_grad()
    loss = model(batch)[0]["loss"]
    loss.backward()
    return float(loss.detach())


def compare(model: Any, batch: dict[str, Any], split: Any) -> dict[str, Any]:
    """Two ranks with a part of ``batch`` each, against one process with all of it."""
    alone = copy.deepcopy(model)  # a copy divides by its own counts
    wrapped = distributed.wrap(model, torch.device("cpu"))
    own = step(held(wrapped), frames_of(batch, split[distributed.rank()]))
    losses = distributed.gather(own)
    wanted = step(held(alone), frames_of(batch, EVERY))
    found = gradients(wrapped, model)
    return {"error": worst(found, gradients(alone, alone)), "losses": losses, "loss": wanted}


def main() -> None:
    world = distributed.start("pytorch", device="cpu")
    results: dict[str, Any] = {}
    for name, split in SPLITS.items():
        for missing in ("", *LABELS):
            results[f"{name}, {missing or 'all labels'}"] = compare(
                three_tasks(), four_frames(missing), split
            )
        results[f"{name}, centres"] = compare(center_point(), center_frames(), split)
    results["local"] = compare(three_tasks(LOSS_NORMALIZATION="local"), four_frames("point_labels"), split)
    if world.is_main:
        torch.save(results, Path(sys.argv[1]) / "errors.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
