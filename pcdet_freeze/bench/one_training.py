"""One whole training in a process of its own: seconds of each part, from the start of the interpreter.

``python -m pcdet_freeze.bench.one_training REQUEST RESULT`` reads and writes JSON files; ``whole_training``
calls it. Configs whose data set is ``RandomScenes`` can be trained here: frames come from loader processes.
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

from pcdet_freeze.bench.data_loading import RepeatedScenes
from pcdet_freeze.bench.whole_training import (
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
    steps: list[float] = field(default_factory=list)
    """seconds of each step"""
    first_step: float = 0.0
    """time of day at which the first step began"""
    _inner: list[float] = field(default_factory=lambda: [0.0])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to the part ``name``."""
        begin = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self.add(name, spent - self._inner.pop())
            self._inner[-1] += spent

    def add(self, name: str, seconds: float) -> None:
        """Add ``seconds`` to the part ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

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
        before = clock.seconds.get(MODEL, 0.0)
        with clock.part(MODEL):
            step(*batches)
        clock.steps.append(clock.seconds[MODEL] - before)

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
    clock.add(IMPORTS, time.time() - request["started"])
    with clock.part(OTHER), run_session() as session:
        with clock.part(BUILD):
            session.cfg = train_api.read_cfg(request["cfg"], request["overrides"])
            options = TrainOptions(**request["options"])
            context = launch.start_training(session.cfg, options, session.closing)
            trainer = train_api.build_training(context).trainer
        watch(trainer, clock)
        trainer.run()
    usual = median(clock.steps)
    excess = max(clock.steps[0] - usual, 0.0)
    clock.add(FIRST_STEP, excess)
    clock.add(MODEL, -excess)
    return {
        "parts": clock.seconds,
        "to_first_step": clock.first_step - request["started"],
        "step_seconds": usual,
        "iterations": len(clock.steps),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "worker_rss": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "ended": time.time(),
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
