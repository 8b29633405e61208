"""OPTIMIZATION.BEST and GUARD: the best checkpoint, an early end, tasks that must not become worse."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import assert_same_state, tensors_of, toy_trainer
from torch import nn

from pcdet_freeze.config.schema import BestSettings
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.validation import ValidationHook, validation_settings
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import ConfigError, TrainingError
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

MIOU = "segmentation/mIoU"


class Scores:
    """An evaluation with these values, one an epoch; it draws random numbers, as a loader does."""

    def __init__(self, *values: float, metric: str = MIOU) -> None:
        self.values, self.metric, self.epochs = values, metric, []

    def __call__(self, model: nn.Module, epoch: int) -> dict[str, float]:
        torch.rand(3)
        model.eval()
        self.epochs.append(epoch)
        return {self.metric: self.values[epoch], "lane/F1": 0.5}


def trained(folder: Path, scores: Any, best: Any = None, guard: Any = None, **more: Any) -> Trainer:
    """A run of as many epochs as there are scores, but the first, which is before the training."""
    settings = BestSettings(MIOU, **best) if best is not None else None
    hooks = [ValidationHook(scores, folder, settings, guard), CheckpointHook(folder)]
    trainer = toy_trainer(hooks, epochs=len(scores.values) - 1, **more)
    trainer.run()
    return trainer


def best_epoch(folder: Path) -> int:
    return int(load_checkpoint(folder / "checkpoint_best.pth")["epoch"])


@pytest.mark.parametrize(("mode", "epoch"), [(None, 2), ("min", 3)])
def test_the_best_epoch_is_kept(tmp_path: Path, mode: Any, epoch: int) -> None:
    trainer = trained(tmp_path, Scores(0, 10, 30, 5, 20), {"mode": mode})
    assert best_epoch(tmp_path) == trainer.results["best"]["epoch"] == epoch
    whole = load_checkpoint(tmp_path / f"checkpoint_epoch_{epoch}.pth")["model_state"]
    assert_same_state(whole, load_checkpoint(tmp_path / "checkpoint_best.pth")["model_state"])


def test_a_run_that_does_not_improve_ends_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trainer = trained(tmp_path, Scores(0, 10, 30, 30.4, 20, 40), {"patience": 2, "min_delta": 0.5})
    assert trainer.epoch == 4 and best_epoch(tmp_path) == 2
    assert "segmentation/mIoU is not better than 30 of epoch 2 for 2 evaluations" in caplog.text


def test_evaluations_come_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    scores = Scores(0, 1, 2, 3, 4, 5)
    trained(tmp_path, scores, {"every": 2})
    assert scores.epochs == [2, 4, 5]


def test_r1_an_evaluation_between_epochs_changes_nothing_of_the_training(tmp_path: Path) -> None:
    with_it = trained(tmp_path, Scores(0, 1, 2, 3), {}, {MIOU: 50.0})
    without = toy_trainer(epochs=3)
    without.run()
    assert_same_state(tensors_of(with_it.model), tensors_of(without.model))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_r1_a_resumed_run_ends_where_one_ends_that_was_not_interrupted(tmp_path: Path, epoch: int) -> None:
    values, best, guard = (20, 10, 30, 20, 25, 40), {"patience": 2}, {MIOU: 15.0}
    trained(tmp_path, Scores(*values), best, guard)
    scores = Scores(*values)
    hook = ValidationHook(scores, tmp_path, BestSettings(MIOU, **best), guard)
    again = toy_trainer([hook, CheckpointHook(tmp_path)], epochs=5, seed=9)
    state = load_checkpoint(tmp_path / f"checkpoint_epoch_{epoch}.pth")
    load_model_state(again.model, state["model_state"], "")
    resume(again, state)
    again.run()
    assert scores.epochs == list(range(epoch + 1, 5)) and again.epoch == 4
    assert again.results["best"] == {"metric": MIOU, "value": 30, "epoch": 2, "ended_early": True}
    after = toy_trainer([hook], epochs=5, seed=9)  # a run that ended early stays at its end
    resume(after, load_checkpoint(tmp_path / "checkpoint_epoch_4.pth"))
    after.run()
    assert after.epoch == 4


def test_a_task_that_falls_too_far_ends_the_run_before_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"task segmentation .*mIoU went from 60 to 57 after epoch 2: by 3"
    ) as e:
        trained(tmp_path, Scores(60, 59.5, 57, 61), guard={MIOU: 1.0, "lane/F1": 0.0})
    assert "LR_SCALE" in str(e.value)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["checkpoint_epoch_1.pth"]


@pytest.mark.parametrize(
    ("interval", "known"),
    [(2, r"checkpoint_epoch_2\.pth \(epoch 2, iteration \d+\)"), (9, "No checkpoint is in ")],
)
def test_the_error_of_a_guard_names_the_newest_checkpoint(tmp_path: Path, interval: int, known: str) -> None:
    hook = ValidationHook(Scores(60, 60, 60, 60, 50), tmp_path, None, {MIOU: 1.0})
    trainer = toy_trainer([hook, CheckpointHook(tmp_path, interval)], epochs=5)
    with pytest.raises(TrainingError, match=f"after epoch 4.*{known}"):
        trainer.run()


NAN = float("nan")


def test_a_value_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Scores(0, NAN, 10, NAN, NAN), {"patience": 2})
    assert best_epoch(tmp_path) == trainer.results["best"]["epoch"] == 2 and trainer.epoch == 4


def test_without_any_number_there_is_no_best_checkpoint(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Scores(0, NAN, NAN, NAN), {"patience": 2})
    assert trainer.epoch == 2 and not (tmp_path / "checkpoint_best.pth").exists()
    assert trainer.results["best"]["value"] is None


def test_a_guarded_metric_that_is_no_number_any_more_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"mIoU went from 60 to nan after epoch 2"):
        trained(tmp_path, Scores(60, 60, NAN), guard={MIOU: 100.0})


def test_a_guard_needs_a_number_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"OPTIMIZATION\.GUARD.*segmentation/mIoU.*nan"):
        trained(tmp_path, Scores(NAN, 60), guard={MIOU: 1.0})


def resumed(folder: Path, epoch: int, scores: Any, best: Any = None, guard: Any = None) -> Trainer:
    """The run in ``folder`` from a checkpoint on, with other settings."""
    hook = ValidationHook(scores, folder, best, guard)
    again = toy_trainer([hook, CheckpointHook(folder)], epochs=len(scores.values) - 1)
    state = load_checkpoint(folder / f"checkpoint_epoch_{epoch}.pth")
    load_model_state(again.model, state["model_state"], "")
    resume(again, state)
    again.run()
    return again


def test_a_resume_with_another_guarded_metric_measures_it_first(tmp_path: Path) -> None:
    trained(tmp_path, Scores(20, 20, 20), guard={MIOU: 1.0})
    scores = Scores(0, 0, 0, 20, metric=MIOU)
    with pytest.raises(TrainingError, match="went from 20 to 0 after epoch 2"):
        resumed(tmp_path, 1, scores, guard={MIOU: 1.0, "lane/F1": 0.1})
    assert scores.epochs == [1, 2]


def test_a_resume_with_another_metric_looks_for_its_best_anew(tmp_path: Path) -> None:
    trained(tmp_path, Scores(0, 40, 50), {"patience": 1})
    again = resumed(tmp_path, 1, Scores(0, 0, 0, 0), BestSettings("lane/F1"))
    assert again.results["best"] == {"metric": "lane/F1", "value": 0.5, "epoch": 2, "ended_early": False}


def test_a_run_that_ended_early_goes_on_with_more_patience(tmp_path: Path) -> None:
    trained(tmp_path, Scores(0, 40, 30, 50, 60), {"patience": 1})
    again = resumed(tmp_path, 2, Scores(0, 40, 30, 50, 60), BestSettings(MIOU, patience=2))
    assert again.epoch == 4 and again.results["best"]["value"] == 60


def test_of_a_distance_the_rise_counts(tmp_path: Path) -> None:
    scores = Scores(1.0, 0.5, 1.25, metric="lane/chamfer_m")
    with pytest.raises(TrainingError, match="task lane"):
        trained(tmp_path, scores, guard={"lane/chamfer_m": 0.125})


def test_a_metric_that_there_is_not_is_an_error_before_the_training_for_a_guard(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"GUARD must name a metric .*got segment/mIoU.*segmentation/mIoU"):
        trained(tmp_path, Scores(1, 2), guard={"segment/mIoU": 1.0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given", [{"BEST": {}}, {"BEST": {"METRIC": MIOU, "PATIENCE": 0}}, {"GUARD": {MIOU: -1}}]
)
def test_settings_that_mean_nothing_are_errors(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"OPTIMIZATION\.(BEST|GUARD)"):
        validation_settings(given)
    assert validation_settings({}) is None
