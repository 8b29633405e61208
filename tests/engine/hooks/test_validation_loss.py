"""OPTIMIZATION.VALIDATION_LOSS: a loss on the test frames that leaves the training as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_toy import ToyData, ToyModel, assert_same_state, tensors_of, toy_trainer
from event_files import scalars_in
from forked_ranks import in_ranks
from task_cases import task_batch, task_model
from torch import nn
from torch.utils.data import DataLoader

from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.logging import TensorboardHook
from pcdet_freeze.engine.hooks.validation_loss import ValidationLossHook, validation_loss
from pcdet_freeze.engine.run_context import Data
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import DataError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.eval_lock import requested_mode
from pcdet_freeze.report.record import RunRecord
from pcdet_freeze.report.run_page import VALIDATION_LOSS, run_page
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

CPU = torch.device("cpu")


def data_of(loader: Any) -> Data:
    return Data(getattr(loader, "dataset", None), loader, None, move=lambda batch, device: None)


TEST_DATA = data_of(DataLoader(ToyData(), batch_size=4))


def trained(folder: Path, every: int, epochs: int = 3) -> Trainer:
    tensorboard = TensorboardHook(folder)
    trainer = toy_trainer(
        [tensorboard, ValidationLossHook(TEST_DATA, every, tensorboard.events)], epochs=epochs
    )
    trainer.run()
    return trainer


def test_the_loss_comes_every_few_epochs_and_after_the_last(tmp_path: Path) -> None:
    trainer = trained(tmp_path, 2)
    found = scalars_in(tmp_path)
    assert [step for step, _ in found["val/loss"]] == [8, 12]
    assert [step for step, _ in found["epoch/val/loss"]] == [2, 3]
    told = trainer.results["validation_loss"]
    assert [(each["epoch"], each["iteration"]) for each in told] == [(2, 8), (3, 12)]
    assert told[-1]["loss"] == pytest.approx(found["val/loss"][-1][1])


class EndsEarly(Hook):
    """Ends the run after an iteration, as OPTIMIZATION.BEST does after an epoch."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self, trainer: Trainer) -> None:
        trainer.stopped = trainer.iteration == self.iteration


@pytest.mark.parametrize(("end", "last"), [(4, (1, 4)), (6, (2, 6)), (8, (2, 8))])
def test_it_comes_where_the_run_ends_before_its_last_epoch(tmp_path: Path, end: int, last: Any) -> None:
    tensorboard = TensorboardHook(tmp_path, keep_open=True)
    hook = ValidationLossHook(TEST_DATA, 2, tensorboard.events)
    trainer = toy_trainer([tensorboard, EndsEarly(end), hook], epochs=3)
    trainer.run()
    (found,) = trainer.results["validation_loss"]
    assert (found["epoch"], found["iteration"]) == last
    trainer.run()  # the rest
    assert [each["iteration"] for each in trainer.results["validation_loss"]] == sorted({end, 8, 12})
    tensorboard.events.close()
    assert [step for step, _ in scalars_in(tmp_path)["val/loss"]] == sorted({end, 8, 12})


def test_it_is_the_loss_of_the_model_in_eval_mode(tmp_path: Path) -> None:
    trainer = trained(tmp_path, 1)
    whole, model = next(iter(DataLoader(ToyData(), batch_size=8))), trainer.model.eval()
    expected = ((model(whole)[0] - whole["y"]) ** 2).mean()
    assert trainer.results["validation_loss"][-1]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_r1_the_training_is_the_same_with_it(tmp_path: Path) -> None:
    without = toy_trainer(epochs=3)
    without.run()
    assert_same_state(tensors_of(trained(tmp_path, 1).model), tensors_of(without.model))


def test_r1_a_resumed_run_has_the_losses_before_it(tmp_path: Path) -> None:
    tensorboard = TensorboardHook(tmp_path / "events")
    hooks = [tensorboard, ValidationLossHook(TEST_DATA, 1, tensorboard.events), CheckpointHook(tmp_path)]
    whole = toy_trainer(hooks, epochs=3)
    whole.run()
    again = toy_trainer([ValidationLossHook(TEST_DATA, 1, tensorboard.events)], epochs=3, seed=9)
    state = load_checkpoint(tmp_path / "checkpoint_epoch_2.pth")
    load_model_state(again.model, state["model_state"], "")
    resume(again, state)
    again.run()
    assert again.results["validation_loss"] == whole.results["validation_loss"]


class Draws(ToyModel):
    """Draws random numbers, and counts its forwards in a buffer and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.kept = 0, []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch: dict[str, Any]) -> Any:
        torch.rand(3)
        self.calls += 1
        self.seen += 1
        self.kept.append(batch)
        return super().forward(batch)


def test_modes_buffers_attributes_and_generators_are_as_before() -> None:
    model = Draws()
    model.head.eval()
    before, modes = tensors_of(model), [part.training for part in model.modules()]
    generator = torch.get_rng_state()
    validation_loss(model, TEST_DATA, CPU)
    assert_same_state(tensors_of(model), before)
    assert [part.training for part in model.modules()] == modes and (model.seen, model.kept) == (0, [])
    assert torch.equal(torch.get_rng_state(), generator)


class Batches(list):
    """A loader of batches."""

    sampler = None


def detector() -> nn.Module:
    """Detection frozen, two tasks that train."""
    model = task_model("segment", "lane")
    freeze(model, ["vfe", "backbone_2d.blocks", "dense_head"])
    return model.train()


def loss_with_running_statistics(model: nn.Module, batch: dict[str, Any]) -> dict[str, float]:
    model = copy.deepcopy(model).train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            part.eval()
    result, parts, _ = model(batch)
    return {**parts, "loss": result["loss"].item()}


def test_t1_the_heads_that_train_give_the_loss_and_the_frozen_modules_stay_as_they_are() -> None:
    model, batches = detector(), [task_batch(seed=number) for number in range(2)]
    before, modes = tensors_of(model), [requested_mode(part) for part in model.modules()]
    found = validation_loss(model, data_of(Batches(copy.deepcopy(batches))), CPU)
    assert_same_state(tensors_of(model), before)
    assert [requested_mode(part) for part in model.modules()] == modes
    expected = [loss_with_running_statistics(model, batch) for batch in batches]
    assert set(found) == set(expected[0]) and "loss_rpn" not in found
    for name in found:
        assert found[name] == pytest.approx(sum(each[name] for each in expected) / 2, rel=1e-5)


def test_two_ranks_give_the_loss_of_all_frames(tmp_path: Path) -> None:
    model, batches = detector(), [task_batch(seed=0), task_batch((40,), seed=1)]
    whole = validation_loss(model, data_of(Batches(copy.deepcopy(batches))), CPU)
    shares = [data_of(Batches([batch])) for batch in batches]
    found = in_ranks(tmp_path, lambda rank: validation_loss(model, shares[rank], CPU))
    assert found[0] == found[1] == pytest.approx(whole, rel=1e-6)


def test_a_training_step_after_it_has_the_gradients_of_one_without_it() -> None:
    gradients = []
    for measures in (False, True):
        model = detector()
        if measures:
            validation_loss(model, data_of(Batches([task_batch(seed=5)])), CPU)
        model(task_batch())[0]["loss"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_same_state(*gradients)


def test_test_data_without_the_labels_of_a_head_that_trains_are_an_error_at_the_start(tmp_path: Path) -> None:
    data = Data(SimpleNamespace(labels=("gt_boxes", "point_labels")), Batches(), None)
    hook = ValidationLossHook(data, 1, TensorboardHook(tmp_path).events)
    with pytest.raises(DataError, match=r"lane_head.*lane_map"):
        hook.before_train(SimpleNamespace(model=detector()))


def test_the_report_draws_it_in_the_figure_of_the_loss(tmp_path: Path) -> None:
    curves = {"loss": [[1.0, 2.0], [2.0, 1.0]], VALIDATION_LOSS: [[2.0, 1.5]], "loss_rpn": [[1.0, 2.0]]}
    page = run_page(RunRecord(curves=curves), tmp_path)
    figures = page.split("<figure>")[1:]
    assert VALIDATION_LOSS in figures[0] and not any(VALIDATION_LOSS in figure for figure in figures[1:])
