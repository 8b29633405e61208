"""How a tool ends, where a run writes, and which flags there are."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pcdet_freeze.engine.arguments import train_parser
from pcdet_freeze.engine.run_context import run_folders
from pcdet_freeze.engine.run_tool import clear_message, run_tool
from pcdet_freeze.errors import ConfigError, DataError


@pytest.fixture
def args(tmp_path: Path) -> argparse.Namespace:
    return train_parser().parse_args(["--cfg_file", "cfgs/a/b.yaml", "--output_dir", str(tmp_path)])


def raising(error: BaseException) -> Any:
    def tool(args: argparse.Namespace) -> None:
        raise error

    return tool


def test_success_is_0(args: argparse.Namespace) -> None:
    assert run_tool(lambda args: None, args) == 0


def test_an_expected_error_is_one_message_and_1(args: argparse.Namespace, capsys: Any) -> None:
    assert run_tool(raising(ConfigError("the rule; the value; what to do")), args) == 1
    out = capsys.readouterr().out
    assert out.rstrip().endswith("ERROR  ConfigError: the rule; the value; what to do")


def test_verbose_shows_the_traceback(args: argparse.Namespace, capsys: Any) -> None:
    args.verbose = True
    assert run_tool(raising(ConfigError("no")), args) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().out


def test_ctrl_c_is_130_and_says_how_to_go_on(args: argparse.Namespace, capsys: Any) -> None:
    assert run_tool(raising(KeyboardInterrupt()), args) == 130
    assert "the same command starts anew" in capsys.readouterr().out


def test_an_unexpected_error_is_not_hidden(args: argparse.Namespace) -> None:
    with pytest.raises(ZeroDivisionError):
        run_tool(raising(ZeroDivisionError()), args)


def test_handlers_of_others_stay_on_the_logger(args: argparse.Namespace) -> None:
    theirs = logging.NullHandler()
    logger = logging.getLogger("pcdet_freeze")
    logger.addHandler(theirs)
    run_tool(raising(ConfigError("no")), args)
    assert theirs in logger.handlers
    logger.removeHandler(theirs)


class BadFrames(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DataError(f"frame {index} is cut off: 7 bytes; remove it")


def test_an_error_in_a_worker_process_loses_its_traceback(args: argparse.Namespace) -> None:
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(BadFrames(), num_workers=1)))
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
