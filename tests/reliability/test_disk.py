"""A full disk: the training state stays safe, one message names the path, and no thread hangs.

A limit on the size of files (RLIMIT_FSIZE) stands for the full disk; /dev/full is one for a single file.
"""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engine_toy import files_in, toy_trainer

from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.event_file import EventFile
from pcdet_freeze.engine.hooks.logging import SummaryHook, TensorboardHook
from pcdet_freeze.engine.logger import close_logger, create_logger
from pcdet_freeze.engine.testing.evaluator import _write
from pcdet_freeze.errors import CheckpointError, OutputError
from pcdet_freeze.utils.output_files import write_text, writing

LOGGER = logging.getLogger("pcdet_freeze.test")


@contextmanager
def full_disk(size: int = 100) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_training_goes_on_without_tensorboard(tmp_path: Path, caplog: Any) -> None:
    with full_disk():
        trainer = toy_trainer([TensorboardHook(tmp_path / "tensorboard")], epochs=10)
        trainer.run()
    assert trainer.iteration == 40
    (said,) = caplog.messages
    assert str(tmp_path / "tensorboard") in said and "continues without" in said


def test_tensorboard_on_a_path_that_is_a_file_is_one_warning(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "tensorboard").touch()
    toy_trainer([TensorboardHook(tmp_path / "tensorboard")]).run()
    (said,) = caplog.messages
    assert str(tmp_path / "tensorboard") in said


def test_events_that_are_written_now_and_then_are_whole(tmp_path: Path) -> None:
    events = EventFile(tmp_path, LOGGER, flush_s=0)
    events.add_scalar("train/loss", 1.5, 3)
    events.close()
    assert b"train/loss" in next(tmp_path.iterdir()).read_bytes()


def test_a_log_on_a_full_disk_is_one_warning_on_the_console(capsys: Any) -> None:
    logger = create_logger("/dev/full", name="pcdet_freeze.full")
    for line in ("one", "two"):
        logger.info(line)
    close_logger(logger)
    out, err = capsys.readouterr()
    assert err == "" and out.count("/dev/full") == 1 and "two" in out and "continues without it" in out


def test_a_checkpoint_folder_that_became_a_file_is_one_error(tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    folder.touch()
    with pytest.raises(CheckpointError, match=str(folder)):
        newest_checkpoint(folder, LOGGER)
    with pytest.raises(CheckpointError, match=str(folder)):
        toy_trainer([CheckpointHook(folder)]).run()


def test_the_former_checkpoint_remains_on_a_full_disk(tmp_path: Path) -> None:
    toy_trainer([CheckpointHook(tmp_path)], epochs=1).run()
    with full_disk(), pytest.raises(CheckpointError, match=r"checkpoint_epoch_1\.pth could not be"):
        toy_trainer([CheckpointHook(tmp_path)], epochs=1).run()
    found = newest_checkpoint(tmp_path, LOGGER)
    assert found is not None and found[1]["it"] == 4 and files_in(tmp_path) == ["checkpoint_epoch_1.pth"]


def test_files_of_an_evaluation_on_a_full_disk_are_one_error(tmp_path: Path) -> None:
    with full_disk(0), pytest.raises(OutputError, match=f"{tmp_path}.*Free disk space"):
        _write(tmp_path, [], {"a": 1.0}, None)


def test_the_summary_is_whole_or_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    toy_trainer([SummaryHook(path)]).run()
    with full_disk(8), pytest.raises(OutputError, match=str(path)):
        toy_trainer([SummaryHook(path)], epochs=3).run()
    assert json.loads(path.read_text())["iterations"] == 8 and files_in(tmp_path) == ["run.json"]


def test_an_error_without_a_path_names_the_file_that_was_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.txt cannot be: no room"), writing(tmp_path / "a.txt"):
        raise OSError("no room")
    write_text(tmp_path / "b" / "a.txt", "x")
    assert (tmp_path / "b" / "a.txt").read_text() == "x"
