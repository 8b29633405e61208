"""Console, TensorBoard, progress bar, evaluation at the end."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, tensors_of, toy_trainer
from tensorboardX.proto.event_pb2 import Event
from torch import nn

from pcdet_freeze.engine.finite_guard import FiniteGuard
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.evaluation import EvaluationHook
from pcdet_freeze.engine.hooks.logging import LogHook, ProgressHook, SummaryHook, TensorboardHook
from pcdet_freeze.engine.hooks.task_gradients import TaskGradientHook
from pcdet_freeze.engine.logger import close_logger, create_logger
from pcdet_freeze.engine.trainer import Trainer


@pytest.fixture
def logger(caplog: pytest.LogCaptureFixture) -> logging.Logger:
    caplog.set_level(logging.INFO)
    return logging.getLogger("pcdet_freeze.test")


LINE = re.compile(
    r"Train: +(\d+)/2 \( *\d+%\) \[ *(\d+)/4 \( *\d+%\)\]  Loss: \S+ \(\S+\)  LR: \S+  Time cost: \S+  "
    r"Acc_iter (\d+)  Data time: \S+  Forward time: \S+  Batch time: \S+$"
)


def test_a_line_tells_epoch_iteration_loss_rate_and_times(
    logger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    toy_trainer([LogHook(every=3)], logger=logger).run()
    found = [LINE.match(message).groups() for message in caplog.messages]
    assert found == [("1", "1", "1"), ("1", "3", "3"), ("1", "4", "4"),
                     ("2", "1", "5"), ("2", "2", "6"), ("2", "4", "8")]  # fmt: skip


class TwoHeads(ToyModel):
    """Losses of two heads, and the weight of one."""

    def forward(self, batch: dict[str, Any]) -> Any:
        loss, _, rest = super().forward(batch)
        return loss, {"loss_rpn": 0.5, "loss_truck_head": torch.tensor(2.0), "loss_weight_rpn": 1.0}, rest


def test_a_line_ends_with_the_loss_of_each_head_where_there_are_several(logger: Any, caplog: Any) -> None:
    toy_trainer([LogHook(every=50)], model=TwoHeads(), epochs=1, logger=logger).run()
    assert caplog.messages[0].endswith("  loss_rpn: 0.5000  loss_truck_head: 2.000")


TIMES = re.compile(r"Time cost: (\S+)/(\S+)  Acc_iter (\d+)")


def test_the_estimated_time_ends_with_max_iters(logger: Any, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter(range(0, 100_000, 60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: next(clock))
        toy_trainer([LogHook(every=2)], epochs=9, max_iters=6, logger=logger).run()
    found = [TIMES.search(message).groups() for message in caplog.messages]
    assert found[0][2] == "1" and found[-1][2] == "6"
    assert found[-1][0] == found[-1][1]  # nothing is left after the last iteration


def test_a_line_of_the_log_leaves_the_progress_bar_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    logger = create_logger(name="pcdet_freeze.bar")
    monkeypatch.setattr("sys.stderr", sys.stdout)  # one terminal
    toy_trainer([LogHook(every=1), ProgressHook(show=True)], max_iters=3, logger=logger).run()
    close_logger(logger)
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().out.splitlines()]
    found = [line for line in lines if "Acc_iter" in line]
    assert len(found) == 3 and not any("train:" in line for line in found)


def test_the_level_of_a_warning_is_coloured_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for forced in ("0", "1"):
        monkeypatch.setenv("FORCE_COLOR", forced)
        logger = create_logger(tmp_path / "log.txt", name="pcdet_freeze.colour")
        logger.warning("a WARNING")
        close_logger(logger)
    plain, coloured = capsys.readouterr().out.splitlines()
    assert plain.endswith("  WARNING  a WARNING") and coloured.endswith("  \033[33mWARNING\033[0m  a WARNING")
    assert "\033" not in (tmp_path / "log.txt").read_text()


def test_the_last_iteration_of_max_iters_is_logged(logger: Any, caplog: pytest.LogCaptureFixture) -> None:
    toy_trainer([LogHook(every=50)], max_iters=3, logger=logger).run()
    assert "Acc_iter 3 " in caplog.messages[-1]


def test_the_progress_bar_ends_with_max_iters(capsys: pytest.CaptureFixture[str]) -> None:
    toy_trainer([ProgressHook(show=True)], max_iters=3).run()
    assert "3/3" in capsys.readouterr().err


def test_a_finished_run_says_what_is_done_and_how_to_train_longer(logger: Any, caplog: Any) -> None:
    trainer = toy_trainer(logger=logger)
    trainer.run()
    assert caplog.messages == []
    trainer.run()
    (said,) = caplog.messages
    assert "epoch 2 of 2, 8 iterations" in said and "--epochs" in said and "--extra_tag" in said


class OneNaN(ToyModel):
    """The loss of its second forward is NaN."""

    calls = 0

    def forward(self, batch: dict[str, Any]) -> Any:
        self.calls += 1
        return super().forward(batch | {"x": batch["x"] * (math.nan if self.calls == 2 else 1)})


def test_the_mean_loss_is_that_of_the_steps_that_were_taken(
    logger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    losses: list[float] = []

    class Losses(Hook):
        def after_step(self, trainer: Trainer) -> None:
            losses.append(trainer.loss)

    guard = FiniteGuard(skip=True)
    toy_trainer([LogHook(every=1), Losses()], model=OneNaN(), epochs=1, guard=guard, logger=logger).run()
    lines = [message for message in caplog.messages if message.startswith("Train:")]
    assert math.isnan(losses[1]) and " Loss: nan " in lines[1]
    taken = [loss for loss in losses if math.isfinite(loss)]
    assert len(taken) == 3 and f"({sum(taken) / 3:#.3g})" in lines[-1]


def test_skipped_frames_are_counted_and_named(logger: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Skips(Hook):
        def after_step(self, trainer: Trainer) -> None:
            trainer.batch["skipped_frames"] = ["000007", "000003"]

    toy_trainer([Skips(), LogHook()], epochs=1, logger=logger).run()
    assert caplog.messages[-1] == "Skipped 2 bad frames in this epoch: 000003, 000007"


def test_gradients_at_the_trunk_are_asked_for_in_the_first_and_in_every_nth_iteration() -> None:
    asked = []

    class Asks(Hook):
        def before_epoch(self, trainer: Trainer) -> None:
            asked.append((trainer.iteration + 1, trainer.model.measure_gradients))

        def after_step(self, trainer: Trainer) -> None:
            asked.append((trainer.iteration + 1, trainer.model.measure_gradients))

    trainer = toy_trainer([TaskGradientHook(every=3), Asks()])
    trainer.model.measure_gradients = False
    trainer.run()
    assert sorted({iteration for iteration, yes in asked if yes}) == [1, 3, 6, 9]
    assert trainer.model.measure_gradients is False


def test_a_model_that_measures_no_gradients_is_left_alone() -> None:
    trainer = toy_trainer([TaskGradientHook()], epochs=1)
    trainer.run()
    assert not hasattr(trainer.model, "measure_gradients")


def scalars(folder: Path) -> dict[str, list[int]]:
    """TensorBoard tag -> steps, read from the event file (length, its checksum, record, its checksum)."""
    (file,) = folder.iterdir()
    data, found = file.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        record, data = data[12 : 12 + length], data[16 + length :]
        event = Event.FromString(record)
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(event.step)
    return found


def test_tensorboard_has_openpcdets_tags_in_every_iteration(tmp_path: Path) -> None:
    toy_trainer([TensorboardHook(tmp_path)], epochs=1).run()
    tags = {tag: steps for tag, steps in scalars(tmp_path).items() if not tag.startswith("epoch/")}
    assert sorted(tags) == ["meta_data/epoch", "meta_data/learning_rate", "train/loss", "train/mse"]
    assert tags["train/loss"] == tags["meta_data/epoch"] == [1, 2, 3, 4]


def test_the_progress_bar_shows_where_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    toy_trainer([ProgressHook(show=True)]).run()
    assert "8/8" in capsys.readouterr().err
    toy_trainer([ProgressHook()]).run()
    assert capsys.readouterr().err == ""


def evaluated(folder: Path, epochs: int, start: int = 0, run: int = 4) -> tuple[list[int], Trainer]:
    seen: list[int] = []

    def evaluate(model: nn.Module, epoch: int) -> None:
        seen.append(epoch)
        weights.append(tensors_of(model)["head.weight"])

    weights: list[torch.Tensor] = []
    trainer = toy_trainer(
        [CheckpointHook(folder), EvaluationHook(evaluate, folder, epochs, start)], epochs=run
    )
    trainer.run()
    if seen:
        assert torch.equal(weights[-1], trainer.model.head.weight)
        assert len({tuple(w.flatten().tolist()) for w in weights}) == len(seen)
    return seen, trainer


@pytest.mark.parametrize(("epochs", "seen"), [(0, []), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_last_n_epochs_are_evaluated_and_not_one_more(
    tmp_path: Path, epochs: int, seen: list[int]
) -> None:
    assert evaluated(tmp_path, epochs)[0] == seen


def test_evaluation_begins_with_start_epoch(tmp_path: Path) -> None:
    assert evaluated(tmp_path, 9, start=2)[0] == [2, 3, 4]


def test_after_the_evaluation_the_model_is_the_final_one(tmp_path: Path) -> None:
    alone = toy_trainer(epochs=4)
    alone.run()
    _, trainer = evaluated(tmp_path, 3)
    assert torch.equal(alone.model.head.weight, trainer.model.head.weight)


def test_a_checkpoint_from_a_longer_run_before_is_not_evaluated(tmp_path: Path) -> None:
    toy_trainer([CheckpointHook(tmp_path)], epochs=6).run()
    assert evaluated(tmp_path, 2)[0] == [3, 4]


def test_rank_0_writes_console_and_file_and_others_errors_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (0, 1):
        made = create_logger(tmp_path / f"{rank}.log", rank, name="pcdet_freeze.test.log")
        made.info("hello from %d", rank)
        close_logger(made)
    assert (tmp_path / "0.log").read_text().endswith("INFO  hello from 0\n")
    assert not (tmp_path / "1.log").exists()
    assert capsys.readouterr().out.count("hello") == 1


def test_run_json_holds_iterations_and_the_median_seconds_of_one(tmp_path: Path) -> None:
    class Takes(Hook):
        def after_step(self, trainer: Trainer) -> None:
            trainer.seconds["batch"] = 99.0 if trainer.iteration <= SummaryHook.WARM_UP else trainer.iteration

    toy_trainer([Takes(), SummaryHook(tmp_path / "out" / "run.json")]).run()
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (found["iterations"], found["epochs"]) == (8, 2)
    assert found["seconds_per_iteration"]["batch"] == 7


def test_a_finished_run_that_starts_again_keeps_its_run_json(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    trainer = toy_trainer([SummaryHook(path)])
    trainer.results["told"] = 7
    trainer.run()
    before, again = path.read_text(), toy_trainer([SummaryHook(path)])
    again.epoch, again.iteration = trainer.epoch, trainer.iteration
    again.run()
    assert path.read_text() == before
    path.write_text('{"iterations": 4}')  # of a run that was made longer, and killed before it wrote the file
    again.run()
    assert json.loads(path.read_text())["iterations"] == 8
