"""The short form of the check at the start of a training; columns of the points in its checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.engine.data_check.expected import Columns, columns_of, expected_of
from pcdet_freeze.engine.data_check.read import survey_some
from pcdet_freeze.engine.data_check.report import DataReport, judge
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.run_context import TrainContext, file_of
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

KEY = "data_columns"
"""in a checkpoint: column of the points -> least value, 1 %, median, 99 %, greatest"""


def check_at_start(context: TrainContext, dataset: Any) -> Columns:
    """Warn of what does not fit in some frames of the training data; returns the columns of their points.

    On rank 0 alone, and not with ``--no_check``. The training is the same with it and without it.
    """
    if context.options.no_check or not context.world.is_main or not isinstance(dataset, DatasetTemplate):
        return {}
    begin = time.monotonic()
    try:
        report = _report(context, dataset)
    except Exception as error:  # the training must not end on a fault of its check
        context.logger.warning("Data check: not completed (%s: %s)", type(error).__name__, error)
        return {}
    found, frames = [f for f in report.findings if f.level != "note"], len(report.frames)
    for finding in found:
        context.logger.warning("Data check, %d of %d frames: %s", frames, len(dataset), finding.text)
    if found:
        cfg_file = file_of(context.cfg) or "FILE"
        context.logger.warning("Check all frames: pcdet-freeze check-data --cfg_file %s", cfg_file)
    else:
        spent = time.monotonic() - begin
        context.logger.info("Data check: nothing found in %d frames (%.1f s)", frames, spent)
    return report.columns


def _report(context: TrainContext, dataset: DatasetTemplate) -> DataReport:
    options, frames = context.options, survey_some(dataset)
    seen = columns_in(options.pretrained_model, options.trust_checkpoint)
    expected = expected_of(context.cfg, dataset, seen)
    return judge(frames, replace(expected, complete=len(frames) == len(dataset)))


def columns_in(path: str | Path | None, trust: bool = False) -> Columns:
    """Columns of the points that the checkpoint at ``path`` was trained on; empty where it does not say.

    ``trust``: the file may hold any Python object.
    """
    if path is None:
        return {}
    ours = load_checkpoint(path, trust, mmap=not trust).get(CHECKPOINT_KEY)
    return columns_of(ours.get(KEY)) if isinstance(ours, dict) else {}


class DataColumnsHook(Hook):
    """Stores the columns of the points in each checkpoint, so that later trainings can be compared."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        columns = self.columns or columns_of(trainer.resumed.get(KEY))
        if columns:
            ours[KEY] = {name: list(values) for name, values in columns.items()}
