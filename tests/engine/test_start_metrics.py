"""Metrics that are stored beside a pretrained checkpoint, and warnings that are stored in logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pcdet_freeze.engine.environment import _messages, warnings_in
from pcdet_freeze.engine.start_metrics import stored_metrics

CFG: dict[str, Any] = {
    "CLASS_NAMES": ["Car"],
    "DATA_CONFIG": {"DATASET": "A", "DATA_AUGMENTOR": {"X": 1}, "NUM_SCENES": {"train": 4, "test": 2},
                    "DATA_PROCESSOR": [{"NAME": "voxels", "SIZE": [1, 1]}]},
    "OPTIMIZATION": {"LR": 1},
}  # fmt: skip


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """A checkpoint of epoch 3 whose training evaluated epochs 2 and 3."""
    for epoch, value in ((2, 0.1), (3, 0.5)):
        folder = tmp_path / f"eval/eval_with_train/epoch_{epoch}/test"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"mAP": value, "text": "no number"}))
    (tmp_path / "report.json").write_text(json.dumps({"config": CFG}))
    return tmp_path / "ckpt" / "checkpoint_epoch_3.pth"


def changed(**data: Any) -> dict[str, Any]:
    return {**CFG, "OPTIMIZATION": {"LR": 2}, "DATA_CONFIG": {**CFG["DATA_CONFIG"], **data}}


def test_metrics_of_the_same_epoch_and_the_same_test_data_are_taken(ckpt: Path) -> None:
    found = stored_metrics(ckpt, changed(DATA_AUGMENTOR={}, NUM_SCENES={"train": 9, "test": 2}, CACHE="x"))
    assert found.values == {"mAP": 0.5} and str(ckpt) in found.source


def test_metrics_of_the_best_checkpoint_are_those_of_its_epoch(ckpt: Path) -> None:
    best = ckpt.with_name("checkpoint_best.pth")
    assert stored_metrics(best, CFG).values == {}
    (ckpt.parents[1] / "run.json").write_text(json.dumps({"best": {"epoch": 2}}))
    assert stored_metrics(best, CFG).values == {"mAP": 0.1}
    assert stored_metrics(ckpt.with_name("latest_model.pth"), CFG).values == {}


@pytest.mark.parametrize(("data", "key"), [
    ({"NUM_SCENES": {"train": 4, "test": 3}}, "DATA_CONFIG.NUM_SCENES.test"),
    ({"DATA_PROCESSOR": [{"NAME": "voxels", "SIZE": [2, 2]}]}, "DATA_CONFIG.DATA_PROCESSOR.0.SIZE.0"),
    ({"DATASET": "B"}, "DATA_CONFIG.DATASET"),
])  # fmt: skip
def test_metrics_of_other_test_data_are_left_out_and_the_key_is_named(
    ckpt: Path, data: dict[str, Any], key: str
) -> None:
    found = stored_metrics(ckpt, changed(**data))
    assert found.values == {} and key in found.source and "EVALUATE_START" in found.source


def test_without_a_report_the_source_says_that_the_data_are_not_known(ckpt: Path) -> None:
    (ckpt.parents[1] / "report.json").write_text("no json")
    found = stored_metrics(ckpt, CFG)
    assert found.values == {"mAP": 0.5} and "not recorded" in found.source


def test_where_nothing_is_stored_the_source_says_why(tmp_path: Path) -> None:
    assert "without a pretrained checkpoint" in stored_metrics(None, CFG).source
    found = stored_metrics(tmp_path / "ckpt" / "checkpoint_epoch_1.pth", CFG)
    assert found.values == {} and "EVALUATE_START" in found.source


LOG = """\
2026-01-02 10:00:00,001   INFO  config:
A: 1
2026-01-02 10:00:01,002  WARNING  first
  second line
2026-01-02 10:00:02,003   INFO  WARNING of an info
2026-01-02 10:00:03,004  WARNING  first
  second line
2026-01-02 10:00:04,005  ERROR  bad
"""


def test_a_long_warning_and_a_long_log_take_little_room(tmp_path: Path) -> None:
    (tmp_path / "train_1.log").write_text(LOG.replace("second line", "x" * 100_000))
    found = warnings_in(tmp_path)
    assert [one["count"] for one in found] == [2, 1]
    assert len(found[0]["text"]) < 10_000 and found[0]["text"].endswith("...")
    assert not isinstance(_messages(tmp_path / "train_1.log"), list)


def test_warnings_of_all_logs_are_counted_with_their_further_lines(tmp_path: Path) -> None:
    (tmp_path / "train_20260102-100000.log").write_text(LOG)
    (tmp_path / "train_20260103-100000.log").write_text(LOG.replace("first", "another"))
    found = {one["text"]: (one["time"], one["count"]) for one in warnings_in(tmp_path)}
    assert found == {
        "first\n  second line": ("2026-01-02 10:00:01", 2),
        "bad": ("2026-01-02 10:00:04", 2),
        "another\n  second line": ("2026-01-02 10:00:01", 2),
    }
