"""Toy trainings in forked processes with all that a run has against bad days, to be broken and resumed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from freeze_runs import cfg_of, frozen_trainer, phase
from toy_dataset import ToyDataset

from pcdet_freeze.cli.common.exit_code import exit_code
from pcdet_freeze.cli.common.program_signals import ProgramSignals
from pcdet_freeze.datasets import EpochSampler
from pcdet_freeze.datasets.reading.frame_loader import FrameLoader
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint, remove_unfinished
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook, TimedCheckpointHook
from pcdet_freeze.engine.hooks.stop_signal import StopBeforeEvaluationHook, StopHook
from pcdet_freeze.engine.logger import create_logger
from pcdet_freeze.engine.ranks.monitor import RankMonitor
from pcdet_freeze.engine.run_lock import run_lock
from pcdet_freeze.engine.run_session import RunSession, run_session
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.signals.stop_signals import StopSignals, end_process

FORK = multiprocessing.get_context("fork")
XYZI = ["x", "y", "z", "intensity"]
DATA = {
    "POINT_CLOUD_RANGE": [0, -20, -3, 20, 20, 1],
    "POINT_FEATURE_ENCODING": {"used_feature_list": XYZI, "src_feature_list": XYZI},
    "DATA_AUGMENTOR": [{"NAME": "random_world_scaling", "WORLD_SCALE_RANGE": [0.9, 1.1]}],
}
RANDOM = {"ALLOW_RANDOM": True}
PLANS = {
    "list": cfg_of("vfe.1", **RANDOM),
    "schedule": cfg_of("vfe", **RANDOM, SCHEDULE=[phase(3, "vfe.[13]", LR_SCALE=0.1), phase(4, "vfe.0")]),
}
EPOCHS = 6


class EightFrames(ToyDataset):
    def __len__(self) -> int:
        return 8


def to_batch(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    points = torch.stack([torch.from_numpy(sample["points"]).float().mean(0) for sample in samples])
    return {"x": points / 10, "y": points[:, 0] / 10}


@dataclass(frozen=True)
class Case:
    """A kind of training."""

    plan: str = "list"
    workers: int = 0
    ranks: int = 1
    saves: bool = False
    """a checkpoint of some MB after each iteration"""

    @property
    def iterations(self) -> int:
        return EPOCHS * 8 // (2 * self.ranks)

    def __str__(self) -> str:
        return f"{self.plan}, {self.workers} workers, {self.ranks} ranks"


class Signals(Hook):
    """This process receives a signal in an iteration."""

    def __init__(self, number: int, iteration: int) -> None:
        self.number, self.iteration = number, iteration

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.iteration:
            os.kill(os.getpid(), self.number)


class Ballast(Hook):
    """Makes checkpoints large, so that a save takes time."""

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        ours["ballast"] = torch.zeros(2**20)


def train(out: Path, case: Case, *more: Hook) -> None:
    """Train ``case`` in ``out`` from its newest checkpoint, as the command does."""
    with run_session() as session:
        launcher = "pytorch" if case.ranks > 1 else "none"
        world = distributed.start(launcher, device="cpu", timeout=60)
        distributed.main_only(lambda: session.closing.enter_context(run_lock(out)))
        logger = create_logger(rank=1)
        trainer = _trainer(out, case, session, list(more), logger)
        trainer.run()
        state = {"model": distributed.unwrap(trainer.model).state_dict(),
                 "optimizer": trainer.optimizer.state_dict()["state"]}  # fmt: skip
        if world.is_main:
            torch.save(state, out / "final.pt")


def _trainer(out: Path, case: Case, session: RunSession, more: list[Hook], logger: logging.Logger) -> Trainer:
    ckpt, agreement = out / "ckpt", None
    if case.ranks > 1:
        monitor = RankMonitor(StopSignals(), 60, logger)
        session.closing.callback(monitor.close)
        agreement = monitor.agreement
    distributed.main_only(lambda: remove_unfinished(ckpt, logger))
    found = newest_checkpoint(ckpt, logger)
    stop, rank = StopHook(ckpt, agreement=agreement), distributed.rank()
    saves: list[Hook] = [Ballast(), TimedCheckpointHook(ckpt, 0)] if case.saves else []
    hooks = [stop, *more, CheckpointHook(ckpt, keep=3), *saves, StopBeforeEvaluationHook(stop)]
    trainer = frozen_trainer(hooks, PLANS[case.plan], path=found[0] if found else None, epochs=EPOCHS,
                             rank=rank, world=case.ranks)  # fmt: skip
    dataset = EightFrames(DATA, ["Car"], training=True)
    sampler = EpochSampler(dataset, 2, shuffle=True, rank=rank, world_size=case.ranks)
    trainer.loader = FrameLoader(
        dataset, batch_size=2, sampler=sampler, num_workers=case.workers, collate_fn=to_batch
    )
    trainer.sampler = sampler
    trainer.rebuild(trainer.optimizer)
    return trainer


def start(out: Path, case: Case, hooks: Callable[[int], list[Hook]] = lambda rank: []) -> list[Any]:
    """The processes of a training, which have begun; ``hooks(rank)`` are added to it."""
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        FORK.Process(target=_run, args=(out, case, rank, port, hooks(rank))) for rank in range(case.ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _run(out: Path, case: Case, rank: int, port: int, hooks: list[Hook]) -> None:
    words = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port}  # fmt: skip
    os.environ.update({name: str(value) for name, value in words.items()})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    with (out / "printed.txt").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with ProgramSignals("training"):
        code = exit_code(lambda: train(out, case, *hooks))
    end_process(code)


def finish(out: Path, case: Case) -> dict[str, Any]:
    """Train to the end, and return the final state. Raises AssertionError where a process fails."""
    codes = ended(start(out, case))
    assert codes == [0] * case.ranks, f"{out}: exit codes {codes}: {(out / 'printed.txt').read_text()}"
    state: dict[str, Any] = torch.load(out / "final.pt")
    return state


def ended(processes: list[Any], wait_s: float = 120) -> list[int | None]:
    """Exit codes; None for a process that hangs, which is killed."""
    for process in processes:
        process.join(wait_s)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes
