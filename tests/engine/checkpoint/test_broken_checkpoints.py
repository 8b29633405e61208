"""Which checkpoint is the newest, and what becomes of broken ones."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import toy_trainer

from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

LOGGER = logging.getLogger("pcdet_freeze.test")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_trainer([CheckpointHook(tmp_path)], epochs=3).run()
    return tmp_path


@pytest.fixture
def saved(folder: Path) -> Path:
    return folder / "checkpoint_epoch_1.pth"


def test_the_furthest_checkpoint_is_newest_whatever_the_file_times_say(folder: Path) -> None:
    os.utime(folder / "checkpoint_epoch_3.pth", (1, 1))
    path, state = newest_checkpoint(folder, LOGGER)
    assert path.name == "checkpoint_epoch_3.pth" and state["it"] == 12


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, LOGGER) is None
    assert newest_checkpoint(tmp_path / "absent", LOGGER) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_old(path: Path) -> None:
    """A file as torch before 1.6 wrote it, half of it."""
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    cut(path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(torch.load(path)["model_state"]["head.weight"].numpy().tobytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"not a checkpoint at all" * 100)


def other(path: Path) -> None:
    torch.save({"weights": [1, 2]}, path)


@pytest.mark.parametrize("spoil", [cut, flip, empty, garbage, other])
def test_a_broken_checkpoint_is_named_and_skipped(
    folder: Path, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(folder / "checkpoint_epoch_3.pth")
    path, _ = newest_checkpoint(folder, LOGGER)
    assert path.name == "checkpoint_epoch_2.pth"
    last = caplog.records[-1]
    assert last.levelname == "WARNING"
    assert "checkpoint_epoch_3.pth" in last.getMessage() and "checkpoint_epoch_2.pth" in last.getMessage()


def test_where_all_are_broken_nothing_starts_anew_in_silence(folder: Path) -> None:
    for path in folder.iterdir():
        empty(path)
    with pytest.raises(CheckpointError, match=r"epoch_1\.pth.*Delete them to start"):
        newest_checkpoint(folder, LOGGER)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (cut, "cannot be read: it is truncated. Name another one"),
        (cut_old, r"cannot be read: it was cut off or damaged \(.+\). Name another one"),
        (flip, r"damaged \(the checksum of its record .+ is wrong\). Name another one"),
        (empty, "cannot be read: it is empty. Name another one"),
        (garbage, "cannot be read: it was not written by torch.save. Name another one"),
        (other, "must hold the key 'model_state'"),
    ],
)
def test_a_named_checkpoint_that_is_broken_is_an_error_that_says_how(
    saved: Path, spoil: Any, told: str
) -> None:
    spoil(saved)
    with pytest.raises(CheckpointError, match=told) as caught:
        load_checkpoint(saved)
    assert str(saved) in str(caught.value)
    assert "weights_only" not in str(caught.value) and "trust" not in str(caught.value)


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not found: .*no\.pth"):
        load_checkpoint(tmp_path / "no.pth")
