"""Frames per second that data workers deliver, and the main process's time for each frame."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from pcdet_freeze.bench.random_scenes import RandomScenes
from pcdet_freeze.bench.timing import Spread
from pcdet_freeze.datasets.late_voxels import TensorBatches, send_points
from pcdet_freeze.datasets.registry import Sample

ARRAYS, TENSORS, POINTS = "arrays", "tensors", "points"
DRAWN = 8
"""number of raw frames; they are drawn once and processed repeatedly, so that drawing is not timed"""


class RepeatedScenes(RandomScenes):
    """``frames`` frames that repeat the first ``DRAWN``."""

    def __init__(self, *args: Any, frames: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frames = frames
        self._drawn: list[Sample] = [super(RepeatedScenes, self).load_sample(i) for i in range(DRAWN)]

    def __len__(self) -> int:
        return self.frames

    def load_sample(self, index: int) -> Sample:
        return copy.deepcopy(self._drawn[index % DRAWN])


def measure_data_loading(
    cfg: Any, sizes: dict[str, list[float]], batch_size: int, workers: int, rounds: int
) -> list[dict[str, Any]]:
    """Return rows for workers that send padded voxels as arrays, as tensors, or points alone (the default).

    ``frames_per_second`` is wall time, so nothing else should run; ``main_seconds`` is process time of the
    main process for a frame, without the voxels that it makes later (``late_seconds``, on the CPU).
    """
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (ARRAYS, TENSORS, POINTS)}
    for _ in range(rounds):
        for kind, results in found.items():
            results.append(_one_pass(_loader(cfg, sizes, batch_size, workers, kind), batch_size))
    base = Spread.of([rate for rate, _ in found[ARRAYS]]).median
    rows = [_row(kind, results, base, workers) for kind, results in found.items()]
    return [*rows, _late(cfg, sizes, batch_size)]


def _loader(cfg: Any, sizes: dict[str, list[float]], batch_size: int, workers: int, kind: str) -> DataLoader:
    frames = batch_size * (1 + 10 * max(workers, 1))
    dataset = RepeatedScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES, sizes=sizes, frames=frames)
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=dataset.collate_batch)
    if kind == TENSORS:
        loader.collate_fn = TensorBatches(loader.collate_fn)
    elif kind == POINTS:
        send_points(loader)
    return loader


def _one_pass(loader: DataLoader, batch_size: int) -> tuple[float, float]:
    """(frames per second, seconds of the main process for a frame), without the first batch."""
    batches = iter(loader)
    next(batches)
    begin, busy, frames = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        frames += int(batch["batch_size"])
    return frames / (time.perf_counter() - begin), (time.process_time() - busy) / frames


def _row(kind: str, results: Sequence[tuple[float, float]], base: float, workers: int) -> dict[str, Any]:
    rate, main = (Spread.of([result[part] for result in results]) for part in (0, 1))
    return {
        "variant": kind,
        "frames_per_second": rate.median,
        "frames_per_second_quartiles": [rate.low, rate.high],
        "rate_ratio": rate.median / base,
        "main_seconds": main.median,
        "workers": workers,
        "rounds": len(results),
    }


def _late(cfg: Any, sizes: dict[str, list[float]], batch_size: int) -> dict[str, Any]:
    """Row with the main process's seconds for voxelising a frame after the transfer, on the CPU."""
    loader = _loader(cfg, sizes, batch_size, 0, POINTS)
    add, batch = send_points(loader), next(iter(loader))
    if add is None:
        return {"variant": "voxels later", "late_seconds": 0.0}
    add(dict(batch))
    begin = time.process_time()
    for _ in range(10):
        add(dict(batch))
    return {"variant": "voxels later", "late_seconds": (time.process_time() - begin) / (10 * batch_size)}
