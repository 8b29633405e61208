"""One whole training in a process of its own: seconds of each part, from the start of the interpreter.

``python -m pcdet_freeze.bench.whole_runs.one_training REQUEST RESULT`` reads and writes JSON files;
``whole_training`` calls it. Configs whose data set is ``RandomScenes`` can be trained here: frames come from
loader processes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pcdet_freeze.bench.costs.data_loading import RepeatedScenes
from pcdet_freeze.bench.whole_runs.whole_training import (
    BUILD,
    FIRST_BATCH,
    FIRST_STEP,
    IMPORTS,
    MODEL,
    MOVE,
    OTHER,
    WAIT,
)
from pcdet_freeze.datasets.registry import DATASETS
from pcdet_freeze.engine import launch, train_api
from pcdet_freeze.engine.run_context import TrainOptions
from pcdet_freeze.engine.run_session import run_session
from pcdet_freeze.engine.trainer import Trainer

EVENTS = ("before_train", "before_epoch", "after_step", "after_epoch", "after_train")
FRAMES = 400


@DATASETS.register_as("RandomScenes")
class _Scenes(RepeatedScenes):
    """RandomScenes as a data set that a training can open."""

    def __init__(
        self, dataset_cfg: Mapping[str, Any], class_names: Sequence[str], training: bool = True, **_: Any
    ) -> None:
        super().__init__(dataset_cfg, class_names, training, frames=FRAMES)


@dataclass
class Clock:
    """Seconds of each part; a part that runs within another one counts for itself only."""

    seconds: dict[str, float] = field(default_factory=dict)
    """wall time"""
    cpu: dict[str, float] = field(default_factory=dict)
    """time of this process: other processes of the machine do not change it"""
    steps: list[tuple[float, float]] = field(default_factory=list)
    """wall and process time of each step"""
    first_step: float = 0.0
    """time of day at which the first step began"""
    _inner: list[list[float]] = field(default_factory=lambda: [[0.0, 0.0]])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to the part ``name``."""
        begin = time.perf_counter(), time.process_time()
        self._inner.append([0.0, 0.0])
        try:
            yield
        finally:
            spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
            inner = self._inner.pop()
            self.add(name, spent[0] - inner[0], spent[1] - inner[1])
            self._inner[-1] = [before + own for before, own in zip(self._inner[-1], spent, strict=True)]

    def add(self, name: str, seconds: float, cpu: float) -> None:
        """Add ``seconds`` of wall time and ``cpu`` of process time to the part ``name``."""
        for kind, value in ((self.seconds, seconds), (self.cpu, cpu)):
            kind[name] = kind.get(name, 0.0) + value

    def of(self, name: str) -> tuple[float, float]:
        """Wall and process time of the part ``name`` so far."""
        return self.seconds.get(name, 0.0), self.cpu.get(name, 0.0)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts as the part ``name``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


def watch(trainer: Trainer, clock: Clock) -> None:
    """Count the time of the parts of ``trainer``; its methods are replaced on the instance."""
    step, load, move = trainer.step, trainer._load_batches, trainer.move

    def timed_step(*batches: Any) -> None:
        clock.first_step = clock.first_step or time.time()
        before = clock.of(MODEL)
        with clock.part(MODEL):
            step(*batches)
        wall, cpu = clock.of(MODEL)
        clock.steps.append((wall - before[0], cpu - before[1]))

    def timed_load(batches: Any) -> Any:
        with clock.part(WAIT if clock.steps else FIRST_BATCH):
            return load(batches)

    replaced: dict[str, Any] = {"step": timed_step, "_load_batches": timed_load}
    if move is not None:
        replaced["move"] = clock.timed(MOVE, move)
    for name, function in replaced.items():
        setattr(trainer, name, function)
    for hook in trainer.hooks:
        for event in EVENTS:
            setattr(hook, event, clock.timed(type(hook).__name__, getattr(hook, event)))


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Train as ``request`` says: cfg, overrides, options, started (time of day); returns plain data."""
    clock = Clock()
    clock.add(IMPORTS, time.time() - request["started"], time.process_time())
    with clock.part(OTHER), run_session() as session:
        with clock.part(BUILD):
            session.cfg = train_api.read_cfg(request["cfg"], request["overrides"])
            options = TrainOptions(**request["options"])
            context = launch.start_training(session.cfg, options, session.closing)
            trainer = train_api.build_training(context).trainer
        watch(trainer, clock)
        trainer.run()
    usual = [median(kind) for kind in zip(*clock.steps, strict=True)]
    excess = [max(first - own, 0.0) for first, own in zip(clock.steps[0], usual, strict=True)]
    clock.add(FIRST_STEP, *excess)
    clock.add(MODEL, *(-value for value in excess))
    return {
        "parts": clock.seconds,
        "cpu": clock.cpu,
        "to_first_step": clock.first_step - request["started"],
        "step_seconds": usual[0],
        "iterations": len(clock.steps),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "worker_rss": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "ended": time.time(),
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
