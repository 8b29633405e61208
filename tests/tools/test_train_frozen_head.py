"""tools/train.py with frozen heads: what stops before the first step, and what the log says once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_runs import FREEZE, LIST, RANDOM, folder, log_of, train


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[dense_head]", "At least one head must give a loss, but all heads are fully frozen: dense_head"),
        ("[vfe, backbone_2d, 'dense_head.*']", "must have a trainable parameter"),
    ],
)
def test_t3_with_nothing_left_to_learn_a_training_stops_before_it_starts(
    tmp_path: Path, entries: str, message: str
) -> None:
    assert train(tmp_path, sets=[LIST, entries, *RANDOM]) == 1
    log = log_of(tmp_path)
    assert message in log and "Start training" not in log
    assert not list(folder(tmp_path).rglob("*.pth"))


def test_p3_the_log_warns_once_at_the_start_of_what_will_drift(tmp_path: Path) -> None:
    assert train(tmp_path, sets=[LIST, "[vfe, backbone_2d.blocks, dense_head.conv_cls]", *RANDOM]) == 0
    log = log_of(tmp_path)
    warning = "dense_head.conv_cls is frozen, but backbone_2d.deblocks feeds it and is trainable"
    assert log.count(warning) == 1
    assert log.index("Start training") < log.index(warning) < log.index("Train: ")


def test_p3_a_frozen_prefix_is_no_reason_to_warn(tmp_path: Path) -> None:
    assert train(tmp_path, sets=FREEZE) == 0
    assert "will drift" not in log_of(tmp_path)
