"""TensorBoard's events beside the losses: evaluations, curves, pictures, values by epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engine_toy import toy_trainer
from event_files import events_in, scalars_in, sessions_in
from PIL import Image

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.logging import TensorboardHook
from pcdet_freeze.engine.hooks.tracking import LastEventsHook
from pcdet_freeze.engine.run_context import RunFolders
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.evaluation import PrecisionRecall
from pcdet_freeze.report.record import Picture

CURVE = PrecisionRecall("Car_3d/easy", 4, np.array([0.9, 0.3]), np.array([2.0, 4.0]), np.array([0.0, 1.0]))


class Evaluates(Hook):
    """Evaluates after these epochs and, as the run does, the stored and the last epochs at the end."""

    def __init__(self, tensorboard: TensorboardHook, *epochs: int, at_end: tuple[int, ...] = ()) -> None:
        self.events, self.epochs, self.at_end = tensorboard.events, epochs, at_end

    def after_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch in self.epochs:
            self.events.evaluation(trainer.epoch, {"Car_3d/easy_R40": 10.0 * trainer.epoch}, [CURVE])

    def after_train(self, trainer: Trainer) -> None:
        for epoch in self.at_end:
            self.events.evaluation(epoch, {"Car_3d/easy_R40": 10.0 * epoch}, [CURVE])
        self.events.close()


def test_a_mean_by_epoch_stands_beside_the_values_by_iteration(tmp_path: Path) -> None:
    toy_trainer([TensorboardHook(tmp_path)]).run()
    found = scalars_in(tmp_path)
    losses = torch.tensor([value for _, value in found["train/loss"]], dtype=torch.float64)
    by_epoch = found["epoch/train/loss"]
    assert [step for step, _ in by_epoch] == [1, 2]
    assert [value for _, value in by_epoch] == pytest.approx(losses.reshape(2, 4).mean(1).tolist(), rel=1e-6)
    assert [value for _, value in found["meta_data/epoch"]] == [k / 4 for k in range(1, 9)]


def test_an_evaluation_is_written_once_by_iteration_and_by_epoch(tmp_path: Path) -> None:
    tensorboard = TensorboardHook(tmp_path, keep_open=True)
    toy_trainer([tensorboard, Evaluates(tensorboard, 2, 3, at_end=(1, 2, 3))], epochs=3).run()
    found = scalars_in(tmp_path)
    assert found["Car_3d/easy_R40"] == [(8, 20.0), (12, 30.0), (4, 10.0)]
    assert found["epoch/Car_3d/easy_R40"] == [(2, 20.0), (3, 30.0), (1, 10.0)]


def test_an_evaluation_in_the_middle_of_an_epoch_has_the_present_iteration(tmp_path: Path) -> None:
    tensorboard = TensorboardHook(tmp_path, keep_open=True)
    toy_trainer([tensorboard, Evaluates(tensorboard, at_end=(2,))], max_iters=6).run()
    assert scalars_in(tmp_path)["Car_3d/easy_R40"] == [(6, 20.0)]


def test_a_curve_has_its_counts_by_rising_threshold(tmp_path: Path) -> None:
    tensorboard = TensorboardHook(tmp_path, keep_open=True)
    toy_trainer([tensorboard, Evaluates(tensorboard, 1)], epochs=1).run()
    ((step, value),) = [(step, value) for tag, step, value in events_in(tmp_path) if tag == "pr/Car_3d/easy"]
    columns = np.array(value.tensor.float_val).reshape([each.size for each in value.tensor.tensor_shape.dim])
    assert step == 4 and value.metadata.plugin_data.plugin_name == "pr_curves"
    expected = [[4, 2], [1, 0], [0, 0], [0, 2], [0.8, 1.0], [1.0, 0.5]]
    assert columns == pytest.approx(np.array(expected))


def test_a_resumed_run_makes_tensorboard_forget_what_was_after_the_checkpoint(tmp_path: Path) -> None:
    trainer = toy_trainer([TensorboardHook(tmp_path)], epochs=1)
    trainer.run()
    assert sessions_in(tmp_path) == []
    again = toy_trainer([TensorboardHook(tmp_path)], epochs=2)
    again.epoch, again.iteration = 1, 4
    again.run()
    assert sessions_in(tmp_path) == [5]


class Draws:
    """Stands for the hook of the report."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pictures, self.drawn = folder, [], 0

    def draw_pictures(self, trainer: Trainer) -> None:
        self.drawn += 1
        Image.new("RGB", (3, 2 + self.drawn)).save(self.folder / "000001.png")
        self.pictures = [Picture("000001", "", "000001.png")]


def test_frames_are_drawn_after_evaluations_between_epochs_and_taken_from_the_report(tmp_path: Path) -> None:
    root, tensorboard = tmp_path / "run", TensorboardHook(tmp_path / "events", keep_open=True)
    root.mkdir()
    draws = Draws(root)
    last = LastEventsHook(tensorboard.events, draws, RunFolders(root), None)

    class Report(Hook):
        def after_train(self, trainer: Trainer) -> None:
            draws.draw_pictures(trainer)

    toy_trainer([tensorboard, EvaluatesOnly(tensorboard), Report(), last], epochs=3).run()
    found = [
        (tag, step, value.image) for tag, step, value in events_in(tmp_path / "events") if value.image.height
    ]
    assert [(tag, step) for tag, step, _ in found] == [("frames/000001", 8), ("frames/000001", 12)]
    assert [(image.width, image.height) for _, _, image in found] == [(3, 3), (3, 4)]
    assert found[-1][2].encoded_image_string == (root / "000001.png").read_bytes()


def test_a_picture_that_is_gone_is_a_warning(tmp_path: Path, caplog: Any) -> None:
    tensorboard = TensorboardHook(tmp_path / "events", keep_open=True)
    draws = Draws(tmp_path)
    draws.pictures = [Picture("gone", "", "gone.png")]
    toy_trainer([tensorboard, LastEventsHook(tensorboard.events, draws, RunFolders(tmp_path), None)]).run()
    assert len(caplog.messages) == 1 and "gone.png" in caplog.text


class EvaluatesOnly(Hook):
    """After the second and the last epoch."""

    def __init__(self, tensorboard: TensorboardHook) -> None:
        self.events = tensorboard.events

    def after_epoch(self, trainer: Trainer) -> None:
        if trainer.epoch > 1:
            self.events.evaluation(trainer.epoch, {"a": 1.0}, [])


def test_events_on_a_full_disk_are_one_warning(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "events").touch()
    tensorboard = TensorboardHook(tmp_path / "events", keep_open=True)
    toy_trainer([tensorboard, Evaluates(tensorboard, 1, at_end=(1, 2))]).run()
    assert len(caplog.messages) == 1 and "continues without" in caplog.text


def test_a_rank_other_than_0_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcdet_freeze.engine.hooks.run_events.distributed", SimpleNamespace(rank=lambda: 1))
    tensorboard = TensorboardHook(tmp_path / "events", keep_open=True)
    toy_trainer([tensorboard, Evaluates(tensorboard, 1, at_end=(2,))]).run()
    assert not (tmp_path / "events").exists()
