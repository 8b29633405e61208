"""Time training steps (forward, loss, backward) of ours and of plain equivalents; run by hand.

PYTHONPATH=.:tests/helpers OMP_NUM_THREADS=1 python tests/helpers/time_models.py [rounds]

Both sides have the same weights and batch, take turns in one process, and another begins each round. Process
time counts, which stands still while other programs run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cut_models
import torch
from plain_steps import PlainStep

ROOT = Path(__file__).resolve().parents[2]
CASES = {"kitti_models/pointpillar": (248, 15_000), "kitti_models/second": (512, 15_000)}
"""cells along x and y, points a frame"""


def steps_of(name: str) -> tuple[Any, dict[str, Callable[[], torch.Tensor]]]:
    """A model, and what makes its loss: ours, and plainly."""
    cut_models.CELLS, cut_models.FewPoints.points = CASES[name]
    cut = cut_models.CutModel(ROOT, name)
    model, batch = cut.model.train(), cut.batch()
    plain = PlainStep(model)
    return model, {
        "ours": lambda: model(dict(batch))[0]["loss"],
        "plain": lambda: plain(dict(batch)),
    }


def timed(model: Any, loss: Callable[[], torch.Tensor]) -> float:
    begin = time.process_time()
    model.zero_grad()
    loss().backward()
    return time.process_time() - begin


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    for name in CASES:
        model, steps = steps_of(name)
        times: dict[str, list[float]] = {side: [] for side in steps}
        for number in range(rounds + 1):
            for side in sorted(steps, reverse=bool(number % 2)):
                spent = timed(model, steps[side])
                if number:  # the first round warms up
                    times[side].append(spent)
        ratios = [ours / plain for ours, plain in zip(times["ours"], times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = {side: statistics.median(spent) for side, spent in times.items()}
        print(f"{name}: ours {medians['ours']:.3f} s, plain {medians['plain']:.3f} s, ", end="")
        print(f"ours / plain {middle:.3f} ({low:.3f}-{high:.3f}), {rounds} rounds", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
