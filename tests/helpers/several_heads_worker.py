"""One of two gloo processes: a frozen head beside a new one, or both; writes to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from several_heads_cases import FROZEN, built, labelled, several_config

from pcdet_freeze.freezing import freeze
from pcdet_freeze.utils import distributed

FRAMES: dict[int, Any] = {0: ([3], [1, 2, 3]), 1: ([1, 2], [1, 2])}
"""rank -> labels of its frames: rank 1 has none of the new class"""


def train(rank: int, names: list[str]) -> dict[str, Any]:
    model = built(several_config("centers"), seed=0)
    if names:
        freeze(model, names)
    wrapped = distributed.wrap(model, torch.device("cpu"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    figures = []
    for _ in range(2):
        wrapped.train()
        optimizer.zero_grad()
        result, found, _ = wrapped(labelled(*FRAMES[rank]))
        result["loss"].backward()
        optimizer.step()
        figures.append(found)
    distributed.share_buffers(model)
    return {"figures": figures, "state": model.state_dict(), "find_unused": wrapped.find_unused_parameters}


def main() -> None:
    world = distributed.start("pytorch", device="cpu")
    runs = {"frozen": train(world.rank, FROZEN), "both": train(world.rank, [])}
    torch.save(runs, Path(sys.argv[1]) / f"{world.rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
