"""Time of what guards a training against bad days, part by part, against the time of a step."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from pcdet_freeze.bench.timing import Spread, interleave, seconds_of
from pcdet_freeze.bench.variants import contender
from pcdet_freeze.datasets.checks.kinds import kind_of
from pcdet_freeze.datasets.frames import check_labels, check_points
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.reading.bad_data import FRAME
from pcdet_freeze.datasets.reading.frame_loader import Board, FrameLoader
from pcdet_freeze.engine.finite_guard import FiniteGuard, StepRecord, verdict
from pcdet_freeze.engine.hooks.bad_data import BadDataHook
from pcdet_freeze.engine.optim.gradient_norms import GradientNorms
from pcdet_freeze.engine.ranks.heartbeats import Heartbeats
from pcdet_freeze.engine.ranks.monitor import POLL_S
from pcdet_freeze.engine.ranks.stop_agreement import StopAgreement
from pcdet_freeze.engine.trainer import Batch, Trainer
from pcdet_freeze.utils.signals.stop_signals import StopSignals

Row = dict[str, Any]
Task = Callable[[], object]
REPEAT = 50
BATCHES = 200
"""empty batches of an epoch, whose time is that of the loader alone"""


def measure_guard_cost(model: nn.Module, cfg: Any, batch: Batch, rounds: int) -> list[Row]:
    """Return a row for each part, and the row ``sum``.

    ``seconds`` are those of a step: parts of a frame are multiplied by the frames of ``batch``, and a thread
    that works twice a second counts as its share of the time. ``share`` is relative to a step of ``model``
    with nothing frozen. ``where``: main process, or the processes that load data (the main process with
    --workers 0).
    """
    step = contender("step", model, cfg, batch, lambda model, cfg: [])
    step.step()
    step.step()
    device, frames = step.trainer.device, int(batch["batch_size"])
    whole = Spread.of(interleave({"step": step.step}, rounds, device)["step"]).median
    main, loading = _main_parts(step.trainer), _frame_parts(batch, step.trainer.logger)
    rows = [_row(name, "main process", seconds, whole) for name, seconds in _timed(main, device).items()]
    rows.append(_row("thread that hands over batches", "main process", _hand_over(), whole))
    poll = _timed({"poll": _poll()}, device)["poll"] / POLL_S * whole
    rows.append(_row("thread of each rank", "main process", poll, whole))
    rows += [_row(name, "loading", frames * s, whole) for name, s in _timed(loading, device).items()]
    total = sum(row["seconds"] for row in rows)
    return [*rows, {**_row("sum", "", total, whole), "step_seconds": whole, "frames": frames}]


def _row(part: str, where: str, seconds: float, step: float) -> Row:
    return {"part": part, "where": where, "seconds": seconds, "share": seconds / step}


def _timed(tasks: Mapping[str, Task], device: torch.device) -> dict[str, float]:
    return {name: Spread.of(s).median for name, s in interleave(tasks, 20, device, REPEAT).items()}


def _main_parts(trainer: Trainer) -> dict[str, Task]:
    """What each step does in addition. Gradients are those of the last step."""
    trainer.guard = FiniteGuard()
    norms, loss = GradientNorms.of(trainer.optimizer), torch.as_tensor(trainer.loss_on_device)
    agreement = StopAgreement(0, 2, StopSignals())
    bad = BadDataHook()
    bad.before_train(trainer)

    def guard() -> None:
        trainer.guard.begin(trainer.model)
        record = StepRecord(trainer.iteration, 1, loss, norms, verdict(loss, norms, False))
        trainer.guard.update(record, trainer, lambda: None)

    parts: dict[str, Task] = {
        "finite guard": guard,
        "stop hook": lambda: agreement.must_stop(trainer.iteration),
        "count of bad frames": lambda: bad.after_step(trainer),
    }
    if trainer.clip_norm is None:  # clipping computes them in any case
        parts["norms of gradients"] = lambda: GradientNorms.of(trainer.optimizer)
    return parts


def _frame_parts(batch: Batch, logger: logging.Logger) -> dict[str, Task]:
    """What each frame needs in addition: the first of ``batch``, with a calibration as KITTI has it."""
    points = batch["points"][batch["points"][:, 0] == 0][:, 1:].cpu().numpy()
    boxes = batch["gt_boxes"][0].cpu().numpy() if "gt_boxes" in batch else np.zeros((0, 8))
    boxes = boxes[(boxes[:, 3:6] > 0).all(axis=1)]  # those that fill the batch up are zero
    sample, raw, board = {"points": points, "gt_boxes": boxes}, points.tobytes(), Board(1, 60.0)
    calib = Calibration(np.eye(3, 4), np.eye(3), np.eye(3, 4))
    write = board.writer(0)

    def note() -> None:
        write(0)
        write(-1)

    return {
        "check of points": lambda: (kind_of(raw), check_points(points, FRAME)),
        "check of labels": lambda: check_labels(sample, 0, None),
        "check of a calibration": calib.fault,
        "board of frames": note,
    }


class _Nothing(Dataset):
    """Frames without content."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> int:
        return index


def _hand_over() -> float:
    """Seconds of a batch that a thread makes, beyond those of one that the main thread makes."""
    cpu = torch.device("cpu")
    plain, limited = (FrameLoader(_Nothing(limit), batch_size=1) for limit in (0.0, 60.0))  # type: ignore[arg-type]
    more = [seconds_of(lambda: list(limited), cpu) - seconds_of(lambda: list(plain), cpu) for _ in range(20)]
    return Spread.of(more).median / BATCHES


def _poll() -> Task:
    """What the thread of a rank does twice a second."""
    from torch import distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    agreement = StopAgreement(0, 2, StopSignals())
    beats = Heartbeats(0, 2, 600, lambda: None)

    def poll() -> None:
        os.getppid()  # the watch of torchrun
        agreement.poll(store)
        beats.poll(store)

    return poll
