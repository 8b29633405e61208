"""The short form of check-data at the start of a training."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checked_frames import CheckedFrames, checked_cfg
from tool_runs import folder, log_of, train

from pcdet_freeze.engine.data_check.at_start import KEY, check_at_start, columns_in
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same training with the check and without it."""
    outs = [tmp_path_factory.mktemp(name) for name in ("checked", "unchecked")]
    for out, flags in zip(outs, ([], ["--no_check"]), strict=True):
        assert train(out, "--epochs", 1, *flags) == 0
    return outs


def last(out: Path) -> Path:
    return folder(out) / "ckpt" / "checkpoint_epoch_1.pth"


def test_a_training_is_the_same_to_the_bit_with_the_check_and_without_it(runs: list[Path]) -> None:
    checked, unchecked = (load_checkpoint(last(out)) for out in runs)
    assert all(torch.equal(v, unchecked["model_state"][k]) for k, v in checked["model_state"].items())
    ours = [{**state[CHECKPOINT_KEY]} for state in (checked, unchecked)]
    assert ours[0].pop(KEY) and KEY not in ours[1] and ours[0].keys() == ours[1].keys()
    assert torch.equal(ours[0]["rng"][0]["torch"], ours[1]["rng"][0]["torch"])


def test_the_log_has_the_verdict_of_the_check(runs: list[Path]) -> None:
    assert "Data check" in log_of(runs[0]) and "Data check" not in log_of(runs[1])


def test_a_checkpoint_holds_the_columns_of_its_points(runs: list[Path]) -> None:
    columns = columns_in(last(runs[0]))
    assert list(columns) == ["intensity"] and len(columns["intensity"]) == 5
    assert 0 <= columns["intensity"][0] < columns["intensity"][-1] <= 1
    assert columns_in(last(runs[1])) == columns_in(None) == {}


def context(pretrained: Path | None = None, main: bool = True, no_check: bool = False) -> Any:
    options = SimpleNamespace(no_check=no_check, pretrained_model=pretrained, trust_checkpoint=False)
    cfg, logger = checked_cfg(), logging.getLogger("pcdet_freeze.test")
    return SimpleNamespace(options=options, cfg=cfg, world=SimpleNamespace(is_main=main), logger=logger)


def checked(change: Any = None) -> CheckedFrames:
    cfg = checked_cfg()
    dataset = CheckedFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=True)
    dataset.change = change
    return dataset


def bytes_of(index: int, sample: dict[str, Any]) -> None:
    sample["points"][:, 3] *= 255


def test_the_range_of_the_intensity_is_compared_with_the_pretrained_checkpoint(
    runs: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert check_at_start(context(last(runs[0])), checked(bytes_of))["intensity"][-1] > 200
    assert "20 of 20 frames: intensity is" in caplog.text and "pretrained checkpoint saw" in caplog.text
    assert "pcdet-freeze check-data --cfg_file" in caplog.text


def test_sound_data_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert check_at_start(context(), checked())
    assert not caplog.records


def test_other_ranks_and_no_check_read_no_frame() -> None:
    def never(index: int, sample: dict[str, Any]) -> None:
        raise AssertionError("a frame was read")

    assert check_at_start(context(main=False), checked(never)) == {}
    assert check_at_start(context(no_check=True), checked(never)) == {}


def test_a_fault_of_the_check_does_not_end_a_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert check_at_start(context(tmp_path / "nowhere.pth"), checked()) == {}
    assert "not completed (CheckpointError: Checkpoint not found" in caplog.text
