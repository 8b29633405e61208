"""Evaluating the checkpoints of a run as they appear (tools/test.py --eval_all)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from torch import nn

from pcdet_freeze.engine.checkpoint.io import epoch_of
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.safe_torch_load import load_checkpoint

DONE_LIST = "eval_list.txt"
NOTHING = "Nothing was evaluated: no checkpoint_epoch_N.pth, N >= %d, in %s that %s does not list already."


def evaluate_all(
    model: nn.Module,
    evaluate: Callable[[nn.Module, int], Mapping[str, Any]],
    ckpt_dir: Path,
    result_dir: Path,
    logger: logging.Logger,
    *,
    start_epoch: int = 0,
    max_waiting_mins: float = 30,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Evaluate each ``checkpoint_epoch_N.pth``, N >= ``start_epoch``, once, oldest first; returns the epochs.

    Epochs written to ``eval_list.txt`` by an earlier call are left out. Gives up when no new checkpoint came
    for ``max_waiting_mins`` minutes.
    """
    result_dir.mkdir(parents=True, exist_ok=True)
    done_file, waited = result_dir / DONE_LIST, 0.0
    finished: list[int] = []
    while True:
        path = distributed.from_main(_next(ckpt_dir, _done(done_file), start_epoch))
        if path is None:
            if waited >= 60 * max_waiting_mins:
                if not finished:
                    logger.warning(NOTHING, start_epoch, ckpt_dir, done_file)
                return finished
            logger.info(
                "No new checkpoint in %s; waited %.1f of %.1f minutes",
                ckpt_dir,
                waited / 60,
                max_waiting_mins,
            )
            sleep(step := min(30.0, 60 * max_waiting_mins))
            waited += step
            continue
        load_model_state(model, load_checkpoint(path)["model_state"], path)
        _record(evaluate(model, epoch_of(path)), epoch_of(path), done_file)
        distributed.barrier()
        finished.append(epoch_of(path))
        waited = 0.0


def _next(folder: Path, done: set[int], start_epoch: int) -> Path | None:
    waiting = [path for path in folder.glob("*.pth") if epoch_of(path) >= max(start_epoch, 0)]
    return min((path for path in waiting if epoch_of(path) not in done), key=epoch_of, default=None)


def _done(file: Path) -> set[int]:
    return {int(line) for line in file.read_text().split()} if file.is_file() else set()


def _record(result: Mapping[str, Any], epoch: int, done_file: Path) -> None:
    if distributed.rank() > 0:
        return
    with SummaryWriter(log_dir=str(done_file.parent / "tensorboard")) as writer:
        for key, value in result.items():
            writer.add_scalar(key, value, epoch)
    with done_file.open("a") as file:
        file.write(f"{epoch}\n")
