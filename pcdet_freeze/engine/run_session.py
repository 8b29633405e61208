"""One run in a process that goes on afterwards: its errors in the log, the process's state restored."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pcdet_freeze.config import locate
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.logger import close_logger, create_logger, is_open
from pcdet_freeze.engine.run_context import TrainContext
from pcdet_freeze.errors import CheckpointError, PCDetFreezeError, TrainingError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.allocator import return_freed_memory
from pcdet_freeze.utils.signals.stop_signals import StoppedBySignal


@dataclass
class RunSession:
    """What the end of a run needs to know."""

    cfg: Any = field(default_factory=dict)
    """names the file and line of a key that an error message holds"""
    advice: Callable[[], str] = lambda: "The run had not started."
    """what to do after an interrupt"""
    closing: ExitStack = field(default_factory=ExitStack)
    """closed when the run ends: the lock of its folder, the threads that watch the ranks"""


@contextmanager
def run_session() -> Iterator[RunSession]:
    """Run something that logs, seeds and may start a process group; restore the process afterwards.

    A PCDetFreezeError is logged as one message, with the file and line of the config key in it, and a
    KeyboardInterrupt or StoppedBySignal with advice how to resume; they are raised again. A collective that
    lost a rank becomes a TrainingError. At the end the log is closed, and random generators, cuDNN flags and
    the process group are as they were before.
    """
    logger, session = logging.getLogger("pcdet_freeze"), RunSession()
    try:
        with _restored_process(), session.closing:
            try:
                with _named_loss_of_a_rank():
                    yield session
            except PCDetFreezeError as error:
                _open(logger)
                error.args = (locate(session.cfg, clear_message(error)), *error.args[1:])
                logger.error("%s: %s", type(error).__name__, error)
                raise
            except (KeyboardInterrupt, StoppedBySignal) as stop:
                _open(logger)
                logger.warning("%s. %s", str(stop) or "Interrupted", session.advice())
                raise
    finally:
        close_logger(logger)


@contextmanager
def _named_loss_of_a_rank() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not distributed.lost_a_rank(error):
            raise
        raise TrainingError(
            f"Every rank must reach each collective, but another one has ended or no longer answers "
            f"(rank {distributed.rank()} waited for it: {str(error).splitlines()[0]}). Look at the messages "
            "of the other ranks; start the run again to resume."
        ) from error


@contextmanager
def _restored_process() -> Iterator[None]:
    cudnn, member = torch.backends.cudnn, distributed.is_distributed()
    flags = cudnn.deterministic, cudnn.benchmark
    python, numpy = random.getstate(), np.random.get_state()
    # a generator of CUDA that nobody has used yet must not open a context on device 0 in every rank
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            cudnn.deterministic, cudnn.benchmark = flags
            if not member:
                distributed.stop()
            return_freed_memory()


def clear_message(error: BaseException) -> str:
    """The message of ``error``, without the traceback that a loader process puts around it."""
    text = str(error)
    mark = f"{type(error).__name__}: "
    return text.rpartition(mark)[2].strip() if "Original Traceback" in text and mark in text else text


def resume_advice(context: TrainContext) -> str:
    """Which checkpoint the same training resumes from after an interrupt."""
    folder = context.folders.ckpt
    try:
        found = newest_checkpoint(folder, context.logger)
    except CheckpointError as error:
        return str(error)
    if found is None:
        return f"No checkpoint is in {folder} yet: run the same command to start from the beginning."
    if context.is_over(found[1]):
        return f"The training is complete ({found[0]}); its evaluation is not: evaluate that checkpoint."
    return f"Run the same command to resume from {found[0]} (iteration {found[1].get('it')})."


def _open(logger: logging.Logger) -> None:
    if not is_open(logger):
        create_logger(rank=0)
