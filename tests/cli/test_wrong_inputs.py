"""A wrong file, flag or key is an error before any slow work: no data set is built, no frame is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runs import CFG, SMALL, train

from pcdet_freeze.__main__ import main
from pcdet_freeze.datasets.synthetic import SyntheticDataset

MISSING, DAMAGED, PLAIN = "missing.pth", "damaged.pth", "plain.pth"
AS_FILE = "plain.pth/out"
"""a path below a file: nothing can be written there"""
CASES = {
    "train --pretrained_model missing": (["train", "--pretrained_model", MISSING], MISSING),
    "train --pretrained_model damaged": (["train", "--pretrained_model", DAMAGED], DAMAGED),
    "train --ckpt missing": (["train", "--ckpt", MISSING], MISSING),
    "train --ckpt damaged": (["train", "--ckpt", DAMAGED], DAMAGED),
    "train --output_dir": (["train", "--output_dir", AS_FILE], "--output_dir"),
    "train --device": (["train", "--device", "gpu"], "gpu"),
    "test --ckpt missing": (["test", "--ckpt", MISSING], MISSING),
    "test --ckpt damaged": (["test", "--ckpt", DAMAGED], DAMAGED),
    "test --pretrained_model": (["test", "--pretrained_model", MISSING], MISSING),
    "test --ckpt_dir": (["test", "--eval_all", "--ckpt_dir", MISSING], "--ckpt_dir"),
    "test without weights": (["test"], "--ckpt"),
    "export --ckpt missing": (["export", "--out", "onnx", "--ckpt", MISSING], MISSING),
    "export --ckpt damaged": (["export", "--out", "onnx", "--ckpt", DAMAGED], DAMAGED),
    "export --out": (["export", "--ckpt", PLAIN, "--out", AS_FILE], "--out"),
    "export --against": (["export", "--ckpt", PLAIN, "--out", "onnx", "--against", MISSING], MISSING),
    "demo --ckpt": (["demo", "--frames", "1", "--ckpt", MISSING], MISSING),
    "demo --before": (["demo", "--frames", "1", "--ckpt", PLAIN, "--before", DAMAGED], DAMAGED),
    "demo --out": (["demo", "--frames", "1", "--ckpt", PLAIN, "--out", AS_FILE], "--out"),
    "suggest --keep": (["suggest", "--keep", "no_head"], "no_head"),
    "suggest --device": (["suggest", "--keep", "dense_head", "--device", "gpu"], "gpu"),
    "explain --ckpt missing": (["explain", "--ckpt", MISSING], MISSING),
    "explain --ckpt damaged": (["explain", "--ckpt", DAMAGED], DAMAGED),
    "digest --ckpt missing": (["digest", "--ckpt", MISSING], MISSING),
    "digest --out": (["digest", "--ckpt", PLAIN, "--out", AS_FILE], "--out"),
    "digest --device": (["digest", "--ckpt", PLAIN, "--device", "gpu"], "gpu"),
    "check-data --pretrained_model": (["check-data", "--pretrained_model", MISSING], MISSING),
    "check-data --out": (["check-data", "--out", AS_FILE], "--out"),
}
"""title -> the words of the command, and what the message names"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a checkpoint that can be read and one that cannot."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": {}}, PLAIN)
    Path(DAMAGED).write_bytes(Path(PLAIN).read_bytes()[:-20])
    return tmp_path


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set can be built."""

    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("the data set was built before the wrong input was an error")

    monkeypatch.setattr(SyntheticDataset, "__init__", refuse)


@pytest.mark.parametrize("title", CASES)
def test_a_wrong_input_is_an_error_before_the_data_set_is_built(
    title: str, files: Path, no_data: None, capsys: Any
) -> None:
    (command, *words), named = CASES[title]
    assert main([command, "--cfg_file", str(CFG), *words, "--set", *SMALL]) != 0
    said = capsys.readouterr()
    assert named in f"{said.out}{said.err}".rpartition("Error: ")[2]


STITCH = ["stitch", "--trunk", PLAIN, "--take"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([*STITCH, "segment_head", "--out", "all.pth"], "--take"),
        ([*STITCH, f"segment_head:{PLAIN}", "--out", AS_FILE], "--out"),
        (["compare", "no_run", "--html", AS_FILE], "--html"),
        (["recipes", "--stage1", MISSING, "--output_dir", "."], MISSING),
    ],
)
def test_a_wrong_input_is_an_error_before_anything_is_read_or_deleted(
    words: list[str], named: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Path(PLAIN).touch()
    (files / "synthetic_models").mkdir()
    assert main(words) != 0
    assert named in capsys.readouterr().err and (files / "synthetic_models").is_dir()


def _shapes(path: Path) -> list[object]:
    torch.save({"model_state": {"dense_head.conv_cls.bias": torch.zeros(1)}}, path)
    return ["--pretrained_model", path]


def _no_optimizer(path: Path) -> list[object]:
    torch.save({"model_state": {}, "epoch": 1, "it": 3}, path)
    return ["--ckpt", path]


@pytest.mark.parametrize(
    ("flags", "sets", "named"),
    [
        (_shapes, [], "dense_head.conv_cls.bias"),
        (_no_optimizer, [], "tensors differ"),
        (lambda path: ["--sync_bn"], [], "--sync_bn"),
        (lambda path: [], ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[no_module]"], "no_module"),
        (lambda path: [], ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe]"], "ALLOW_RANDOM"),
        (
            lambda path: ["--num_epochs_to_eval", 1],
            ["MODEL.POST_PROCESSING.EVAL_METRIC", "lyft"],
            "EVAL_METRIC",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_an_error_before_a_frame_is_read(
    flags: Callable[[Path], list[object]], sets: list[str], named: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    read: list[int] = []
    load = SyntheticDataset.load_sample
    monkeypatch.setattr(
        SyntheticDataset, "load_sample", lambda data, index: read.append(index) or load(data, index)
    )
    assert train(tmp_path, *flags(tmp_path / "other.pth"), sets=sets) == 1
    assert named in capsys.readouterr().out.rpartition("Error: ")[2] and not read
