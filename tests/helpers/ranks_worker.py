"""One of several real processes: a toy training with everything that a run has against signals and hangs.

    python ranks_worker.py OUT ITERATIONS STEP_S TIMEOUT

It prints one line an iteration, and at the end the exit code of the command would be that of the process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from engine_toy import toy_trainer

from pcdet_freeze.__main__ import leave
from pcdet_freeze.cli.common.exit_code import exit_code
from pcdet_freeze.cli.common.program_signals import ProgramSignals
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint, remove_unfinished
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.stop_signal import StopBeforeEvaluationHook, StopHook
from pcdet_freeze.engine.logger import create_logger
from pcdet_freeze.engine.ranks.monitor import RankMonitor
from pcdet_freeze.engine.run_lock import run_lock
from pcdet_freeze.engine.run_session import run_session
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.signals.stop_signals import StopSignals


class Prints(Hook):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def after_step(self, trainer: Trainer) -> None:
        # one write: the ranks share a pipe, and print() writes the end of a line by itself
        os.write(1, f"rank {distributed.rank()} iteration {trainer.iteration}\n".encode())
        time.sleep(self.seconds)


def train(out: Path, iterations: int, step_s: float, timeout: float) -> None:
    with run_session() as session:
        world = distributed.start("pytorch", device="cpu", timeout=timeout)
        if world.is_main:
            session.closing.enter_context(run_lock(out))
        logger = create_logger(rank=world.rank)
        monitor = RankMonitor(StopSignals(), timeout, logger)
        session.closing.callback(monitor.close)
        session.advice = lambda: f"rank {world.rank} iteration {trainer.iteration}."
        trainer = build(out, iterations, step_s, monitor, logger)
        trainer.run()
        if world.is_main:
            torch.save(distributed.unwrap(trainer.model).state_dict(), out / "final.pt")


def build(out: Path, iterations: int, step_s: float, monitor: RankMonitor, logger: logging.Logger) -> Trainer:
    stop = StopHook(out / "ckpt", agreement=monitor.agreement)
    hooks: Any = [stop, Prints(step_s), CheckpointHook(out / "ckpt", keep=2), StopBeforeEvaluationHook(stop)]
    rank, size = distributed.rank(), distributed.world_size()
    epochs = iterations * size * 2 // 8
    trainer = toy_trainer(hooks, epochs=epochs, batch_size=2, rank=rank, world=size, logger=logger)
    if rank == 0:
        remove_unfinished(out / "ckpt", logger)
    if (found := newest_checkpoint(out / "ckpt", logger)) is not None:
        load_model_state(trainer.model, found[1]["model_state"], found[0])
        resume(trainer, found[1])
    trainer.rebuild(trainer.optimizer)
    return trainer


if __name__ == "__main__":
    given = [Path(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:5])]
    with ProgramSignals("ranks_worker"):
        code = exit_code(lambda: train(*given))
    leave(code)
