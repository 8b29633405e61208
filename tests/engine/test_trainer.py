"""The loop: which hooks are called when, and what one iteration does."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from engine_toy import OPTIM, ToyModel, assert_same_state, tensors_of, toy_trainer

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import NonFiniteLossError, Trainer, clip_norm_of
from pcdet_freeze.errors import DataError, FreezeError, TrainingError


class Diary(Hook):
    """Writes down each call."""

    def __init__(self, name: str = "") -> None:
        self.name, self.calls = name, []

    def before_train(self, trainer: Trainer) -> None:
        self.calls.append(f"{self.name}before_train")

    def before_epoch(self, trainer: Trainer) -> None:
        self.calls.append(f"{self.name}before_epoch {trainer.epoch}")

    def after_step(self, trainer: Trainer) -> None:
        self.calls.append(f"{self.name}after_step {trainer.iteration}")

    def after_epoch(self, trainer: Trainer) -> None:
        self.calls.append(f"{self.name}after_epoch {trainer.epoch}")

    def after_train(self, trainer: Trainer) -> None:
        self.calls.append(f"{self.name}after_train")


def test_hooks_are_called_as_the_docstring_of_hook_says() -> None:
    diary = Diary()
    toy_trainer([diary], batch_size=4).run()
    assert diary.calls == [
        "before_train",
        "before_epoch 0", "after_step 1", "after_step 2", "after_epoch 1",
        "before_epoch 1", "after_step 3", "after_step 4", "after_epoch 2",
        "after_train",
    ]  # fmt: skip


def test_a_hook_base_has_at_most_seven_methods() -> None:
    assert len([name for name in vars(Hook) if not name.startswith("_")]) == 7


def test_an_error_in_on_exception_does_not_hide_the_error_that_ended_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Hook):
        def after_step(self, trainer: Trainer) -> None:
            raise DataError("the cause")

        def on_exception(self, trainer: Trainer) -> None:
            raise OSError("no room")

    class Closes(Hook):
        closed = False

        def on_exception(self, trainer: Trainer) -> None:
            self.closed = True

    closes = Closes()
    with pytest.raises(DataError, match="the cause"):
        toy_trainer([Fails(), closes]).run()
    assert closes.closed and "Fails.on_exception" in caplog.text and "no room" in caplog.text


def test_hooks_run_in_list_order() -> None:
    first = Diary("first ")
    second = Diary("second ")
    second.calls = first.calls
    toy_trainer([first, second], epochs=1, batch_size=8).run()
    assert first.calls[:4] == ["first before_train", "second before_train",
                               "first before_epoch 0", "second before_epoch 0"]  # fmt: skip


def test_max_iters_stops_in_the_middle_of_an_epoch_and_calls_no_after_epoch_for_it() -> None:
    diary = Diary()
    trainer = toy_trainer([diary], batch_size=4, max_iters=3)
    trainer.run()
    assert diary.calls[-3:] == ["before_epoch 1", "after_step 3", "after_train"]
    assert (trainer.epoch, trainer.offset, trainer.iteration, trainer.epoch_number) == (1, 1, 3, 2)


def test_max_iters_at_the_last_iteration_of_an_epoch_finishes_that_epoch() -> None:
    diary = Diary()
    toy_trainer([diary], batch_size=4, max_iters=2).run()
    assert diary.calls[-3:] == ["after_step 2", "after_epoch 1", "after_train"]


def test_max_iters_that_were_already_done_train_nothing() -> None:
    trainer = toy_trainer(max_iters=3)
    trainer.iteration = 3
    trainer.run()
    assert trainer.iteration == 3


def test_h4_the_model_is_put_in_train_mode_in_every_iteration() -> None:
    modes = []

    class Evaluates(Hook):
        def after_step(self, trainer: Trainer) -> None:
            trainer.model.eval()

    class Watches(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            modes.append(self.training)
            return super().forward(batch)

    toy_trainer([Evaluates()], model=Watches(), epochs=1).run()
    assert modes == [True] * 4


def test_global_step_counts_the_iterations() -> None:
    trainer = toy_trainer()
    trainer.run()
    assert trainer.model.global_step.item() == trainer.iteration == 8


def test_two_runs_with_one_seed_are_equal_to_the_bit() -> None:
    states = []
    for _ in range(2):
        trainer = toy_trainer()
        trainer.run()
        states.append(tensors_of(trainer.model))
    assert_same_state(*states)


def test_gradients_are_clipped_to_the_norm() -> None:
    trainer = toy_trainer()
    trainer.clip_norm = 1e-3
    batch = next(iter(trainer.loader))
    trainer.step(batch)
    norm = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm().item()
    assert trainer.grad_norm > 1e-3 and math.isclose(norm, 1e-3, rel_tol=1e-3)


@pytest.mark.parametrize("cfg", [{}, {"GRAD_NORM_CLIP": None}, {"GRAD_NORM_CLIP": 0}])
def test_no_clip_norm_means_no_clipping(cfg: dict[str, Any]) -> None:
    assert clip_norm_of(cfg) is None
    assert clip_norm_of({"GRAD_NORM_CLIP": 35}) == 35.0


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_and_changes_no_weight(factor: float) -> None:
    trainer = toy_trainer()
    before = dict(trainer.model.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}
    batch = {**next(iter(trainer.loader)), "factor": factor, "frame_id": ["000123"]}
    with pytest.raises(NonFiniteLossError, match=r"loss must be finite.*iteration 0.*mse.*000123"):
        trainer.step(batch)
    assert_same_state(before, {name: value.detach() for name, value in trainer.model.named_parameters()})


def test_a_gradient_that_is_not_finite_is_named_and_changes_no_weight() -> None:
    class Root(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            result = super().forward(batch)
            return (
                {"loss": result[0]["loss"] + self.head.bias.sub(self.head.bias.detach()).abs().sqrt().sum()},
                {},
                {},
            )

    trainer = toy_trainer(model=Root())
    with pytest.raises(NonFiniteLossError, match="gradient norm must be finite"):
        trainer.step(next(iter(trainer.loader)))
    assert trainer.iteration == 0


def test_t3_a_model_without_a_loss_that_trains_stops_before_the_first_update() -> None:
    class Detached(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            return {"loss": super().forward(batch)[0]["loss"].detach()}, {}, {}

    with pytest.raises(TrainingError, match="does not depend on any trainable parameter"):
        toy_trainer(model=Detached()).run()


def test_t3_a_model_without_trainable_parameters_gets_no_optimizer() -> None:
    model = ToyModel().requires_grad_(False)
    with pytest.raises(FreezeError, match="must have a trainable parameter"):
        build_optimizer(model, OPTIM)


def test_an_empty_loader_is_an_error_and_no_endless_loop() -> None:
    trainer = toy_trainer()
    with pytest.raises(DataError, match="at least one batch an epoch"):
        Trainer(trainer.model, trainer.optimizer, trainer.schedule, [], epochs=1)


def test_amp_on_cpu_computes_in_bfloat16_and_trains() -> None:
    seen = []

    class Watches(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            seen.append(self.head(self.vfe(batch["x"])).dtype)
            return super().forward(batch)

    trainer = toy_trainer(model=Watches(), use_amp=True)
    before = tensors_of(trainer.model)
    trainer.run()
    assert set(seen) == {torch.bfloat16}
    assert not torch.equal(before["head.weight"], trainer.model.head.weight)


def test_a_hook_can_change_what_trains_in_the_middle() -> None:
    class Thaws(Hook):
        def before_epoch(self, trainer: Trainer) -> None:
            if trainer.epoch == 1:
                trainer.model.vfe.requires_grad_(True)
                trainer.rebuild(build_optimizer(trainer.model, OPTIM))

    class Records(Hook):
        def after_epoch(self, trainer: Trainer) -> None:
            states.append(tensors_of(trainer.model))

    states: list[dict[str, torch.Tensor]] = []
    model = ToyModel()
    model.vfe.requires_grad_(False)
    states.append(tensors_of(model))
    toy_trainer([Thaws(), Records()], model=model).run()
    moved = [not torch.equal(a["vfe.0.weight"], b["vfe.0.weight"]) for a, b in pairwise(states)]
    assert moved == [False, True]


def test_a_batch_is_moved_before_the_model_sees_it() -> None:
    def move(batch: dict[str, Any], device: torch.device) -> None:
        batch.update({name: value.to(device, torch.float64) for name, value in batch.items()})

    trainer = toy_trainer(move=move, epochs=1, model=ToyModel().double())
    trainer.run()
    assert trainer.iteration == 4
