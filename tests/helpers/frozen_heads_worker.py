"""One of two gloo processes: a detector with frozen heads under DDP; writes what it saw to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from toy_parts import toy, toy_batch

from pcdet_freeze.freezing import freeze
from pcdet_freeze.utils import distributed

VARIANTS = {
    "needed": ["dense_head"],
    "idle": ["dense_head", "roi_head", "backbone_2d.deblocks"],
    "part": ["dense_head.out", "vfe"],
}


def train(world: distributed.World, entries: list[str]) -> dict[str, Any]:
    model = toy("DENSE_HEAD", "ROI_HEAD", "LANE_HEAD", seed=world.rank)
    freeze(model, entries)
    wrapped = distributed.wrap(model, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        wrapped.train()
        optimizer.zero_grad()
        wrapped(toy_batch("label", "lane_label", seed=10 * step + world.rank))[0]["loss"].backward()
        optimizer.step()
    distributed.share_buffers(model)
    calls = {
        name: list(module.calls) for name, module in zip(model.module_names, model.module_list, strict=True)
    }
    unused = wrapped.find_unused_parameters
    return {"before": before, "after": model.state_dict(), "calls": calls, "find_unused": unused}


def main() -> None:
    world = distributed.start("pytorch", device="cpu")
    found = {name: train(world, entries) for name, entries in VARIANTS.items()}
    torch.save(found, Path(sys.argv[1]) / f"{world.rank}.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
