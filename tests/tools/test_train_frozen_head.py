"""tools/train.py with frozen heads: what stops before the first step, and what the log says once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_runs import CFG, FREEZE, LIST, RANDOM, folder, log_of, tool, train, words


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


def test_p3_a_warning_about_a_frozen_head_names_the_command_that_prints_the_list(tmp_path: Path) -> None:
    cfg = CFG.with_name("stage2_segment.yaml")
    flags = ["--max_iters", 1, "--batch_size", 1, "--num_epochs_to_eval", 0]
    command = words(tmp_path, *flags, sets=[LIST, "[vfe, dense_head]", *RANDOM], cfg=cfg)
    assert tool("train").main(command) == 1  # no loss reaches the rest of its trunk
    (log,) = (path.read_text() for path in tmp_path.rglob("train_*.log"))
    assert log.index("detections will drift") < log.index(
        "pcdet-freeze suggest --cfg_file FILE --keep dense_head`"
    )
