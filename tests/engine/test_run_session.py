"""What a run leaves in the process, what its end logs, and where it writes."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pcdet_freeze.datasets.loader import shut_down_workers
from pcdet_freeze.engine.logger import create_logger
from pcdet_freeze.engine.option_limits import LOWEST
from pcdet_freeze.engine.run_context import EvalOptions, RunOptions, TrainOptions, run_folders
from pcdet_freeze.engine.run_session import clear_message, run_session
from pcdet_freeze.errors import ConfigError, DataError


def end_with(error: BaseException) -> None:
    with pytest.raises(type(error)), run_session():
        raise error


def test_an_expected_error_is_logged_as_one_message_and_raised(capsys: Any) -> None:
    end_with(ConfigError("the rule; the value; what to do"))
    out = capsys.readouterr().out
    assert out.rstrip().endswith("ERROR  ConfigError: the rule; the value; what to do")
    assert out.count("\n") == 1


def test_an_interrupt_is_logged_with_the_advice_and_raised(capsys: Any) -> None:
    with pytest.raises(KeyboardInterrupt), run_session() as session:
        session.advice = lambda: "Resume from x.pth."
        raise KeyboardInterrupt
    assert "Interrupted. Resume from x.pth." in capsys.readouterr().out


def test_an_unexpected_error_is_raised_and_not_logged(capsys: Any) -> None:
    end_with(ZeroDivisionError())
    assert capsys.readouterr().out == ""


def test_the_logger_is_as_before_a_run(tmp_path: Path) -> None:
    logger = logging.getLogger("pcdet_freeze")
    theirs = logging.NullHandler()
    logger.addHandler(theirs)
    before = (list(logger.handlers), logger.propagate, logger.level)
    with run_session():
        create_logger(tmp_path / "a.log")
        create_logger(tmp_path / "b.log")
        assert not logger.propagate and logger.level == logging.INFO
    assert (logger.handlers, logger.propagate, logger.level) == before
    logger.removeHandler(theirs)


@pytest.mark.parametrize("error", [None, ConfigError("no"), KeyboardInterrupt(), ZeroDivisionError()])
def test_random_generators_and_cudnn_flags_are_as_before_a_run(error: BaseException | None) -> None:
    def state() -> list[Any]:
        flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), flags]

    before = state()
    try:
        with run_session():
            random.seed(1)
            np.random.seed(1)
            torch.manual_seed(1)
            torch.backends.cudnn.deterministic = True
            if error is not None:
                raise error
    except BaseException as caught:
        assert caught is error
    assert state() == before


def test_a_process_group_of_the_caller_survives_a_run(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/a", rank=0, world_size=1)
    with run_session():
        pass
    assert torch.distributed.is_initialized()
    torch.distributed.destroy_process_group()
    with run_session():
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/b", rank=0, world_size=1)
    assert not torch.distributed.is_initialized()


class BadFrames(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DataError(f"frame {index} is cut off: 7 bytes; remove it")


def test_an_error_in_a_loader_process_loses_its_traceback() -> None:
    loader = DataLoader(BadFrames(), num_workers=1)
    batches = iter(loader)
    with pytest.raises(DataError) as caught:
        next(batches)
    shut_down_workers(loader, batches)  # the traceback would keep them alive
    assert "Traceback" in str(caught.value)
    assert clear_message(caught.value) == "frame 0 is cut off: 7 bytes; remove it"


@pytest.mark.parametrize(
    ("cfg_file", "folder"),
    [
        ("cfgs/kitti_models/second.yaml", "kitti_models/second/tag"),
        ("/a/cfgs/x/cfgs/kitti_models/deep/second.yaml", "kitti_models/deep/second/tag"),
        ("/a/cfgs/second.yaml", "second/tag"),
        ("/a/mine/second.yaml", "mine/second/tag"),
    ],
)
def test_a_run_writes_where_openpcdets_would(cfg_file: str, folder: str) -> None:
    folders = run_folders(cfg_file, "tag")
    assert folders.root == Path("output") / folder
    assert (folders.ckpt.name, folders.tensorboard.name, folders.eval.name) == ("ckpt", "tensorboard", "eval")
    assert run_folders(cfg_file, "tag", "/out").root == Path("/out") / folder


@pytest.mark.parametrize("name", LOWEST)
def test_an_option_below_its_limit_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a whole number, {LOWEST[name]} or more; got -1"):
        TrainOptions(**{name: -1})


def test_all_options_out_of_range_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainOptions(epochs=0, workers=1.5, batch_size=True)  # type: ignore[arg-type]
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["batch_size", "workers", "epochs"]


def test_options_cannot_be_changed() -> None:
    for kind in (RunOptions, TrainOptions, EvalOptions):
        with pytest.raises(AttributeError):
            kind().workers = 3  # type: ignore[misc]
