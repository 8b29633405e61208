"""tools/test.py: one checkpoint, or all of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tool_runs import folder, tool, train, words


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    assert train(out, "--num_epochs_to_eval", 1, "--save_to_file") == 0
    return out


def evaluate(out: Path, *flags: object) -> int:
    return tool("test").main([word for word in words(out, *flags) if word != "--fix_random_seed"])


def metrics(run: Path, place: str) -> dict[str, float]:
    return json.loads((run / "eval" / place / "result.json").read_text())


def test_a_checkpoint_scores_as_it_did_after_its_training(out: Path) -> None:
    run = folder(out)
    assert evaluate(out, "--ckpt", run / "ckpt" / "checkpoint_epoch_2.pth", "--batch_size", 2) == 0
    found = metrics(run, "epoch_2/test/default")
    assert found == metrics(run, "eval_with_train/epoch_2/test")
    assert "Car_3d/moderate_R40" in found


def test_eval_all_takes_every_checkpoint_and_tensorboard(out: Path) -> None:
    assert evaluate(out, "--eval_all", "--max_waiting_mins", 0, "--eval_tag", "late") == 0
    place = folder(out) / "eval" / "eval_all_late"
    assert (place / "eval_list.txt").read_text().split() == ["1", "2"]
    assert (place / "tensorboard").is_dir()
    for epoch in (1, 2):
        assert metrics(folder(out), f"eval_all_late/epoch_{epoch}/test")


def test_predictions_are_saved_as_files_where_asked_for(out: Path) -> None:
    place = folder(out) / "eval" / "eval_with_train" / "epoch_2" / "test" / "final_result" / "data"
    assert place.is_dir()


def test_without_weights_it_says_which_flag_to_give(out: Path, capsys: Any) -> None:
    assert evaluate(out) == 1
    assert "--ckpt FILE, or --eval_all" in capsys.readouterr().out
