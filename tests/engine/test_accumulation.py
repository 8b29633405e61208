"""OPTIMIZATION.ACCUMULATE: N batches in one optimizer step give the step of one batch of N-fold size."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import OPTIM, ToyModel, assert_same_state, tensors_of, toy_trainer
from grad_scaler import cpu_grad_scaler
from rank_cases import four_frames, frames_of, three_tasks, whole_error, worst
from two_processes import torchrun, worker

from pcdet_freeze.engine.accumulation import mean_figures, merged
from pcdet_freeze.engine.checkpoint.io import checkpoint_state
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.finite_guard import FiniteGuard
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import NonFiniteLossError, Trainer
from pcdet_freeze.freezing import freeze

MICRO = [(0,), (1,), (2,), (3,)]


class Held(ToyModel):
    """A toy without batch statistics and dropout: a sample does not change the features of another."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.vfe[3] = torch.nn.Identity()

    def train(self, mode: bool = True) -> Held:
        super().train(mode)
        self.vfe[1].eval()
        return self


def pair(epochs: int = 2, **more: Any) -> tuple[Trainer, Trainer]:
    """A run on batches of 4, and one on batches of 1 of which 4 make a step."""
    large = toy_trainer(model=Held(), batch_size=4, epochs=epochs, **more)
    small = toy_trainer(model=Held(), batch_size=1, epochs=epochs, accumulate=4, **more)
    small.schedule = large.schedule
    return large, small


@pytest.mark.parametrize("optimizer", ["adam_onecycle", "sgd"])
def test_the_weights_are_those_of_the_large_batch(optimizer: str) -> None:
    large, small = pair(optimizer=optimizer)
    for trainer in (large, small):
        trainer.run()
    assert (small.iteration, small.epoch_length) == (large.iteration, large.epoch_length) == (4, 2)
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    wanted = tensors_of(large.model)
    assert whole_error(tensors_of(small.model), wanted) < 1e-6


class HeldTasks:
    """Keeps every norm layer of a detector in eval mode although the trainer calls ``train()``."""

    def __new__(cls) -> Any:
        model = three_tasks()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
        return model


def trainer_of(model: Any, names: Any = ()) -> Trainer:
    if names:
        freeze(model, list(names))
    optimizer = build_optimizer(model, {**OPTIM, "OPTIMIZER": "sgd"})
    schedule = build_scheduler(optimizer, 10, 10, {**OPTIM, "OPTIMIZER": "sgd", "LR": 1e-3})
    return Trainer(model, optimizer, schedule, [None], epochs=1)


@pytest.mark.parametrize("names", [(), ("vfe", "backbone_2d.blocks")])
@pytest.mark.parametrize("missing", ["", "lane_map"])
def test_three_tasks_give_the_gradient_of_the_large_batch(missing: str, names: Any) -> None:
    whole, models = four_frames(missing), [HeldTasks(), HeldTasks()]
    large, small = (trainer_of(model, names) for model in models)
    large.step(frames_of(whole, (0, 1, 2, 3)))
    small.step(*(frames_of(whole, frames) for frames in MICRO))
    wanted, found = (
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None} for model in models
    )
    assert whole_error(found, wanted) < 1e-6 and worst(found, wanted) < 1e-5
    assert small.loss == pytest.approx(large.loss, rel=1e-5)
    assert small.tb_dict["loss_lane_head"] == pytest.approx(large.tb_dict["loss_lane_head"], rel=1e-4)


def test_the_forward_that_counts_changes_no_generator_and_no_statistics() -> None:
    model, whole = three_tasks(), four_frames()
    alone = copy.deepcopy(model)
    torch.manual_seed(5)
    trainer_of(model).step(frames_of(whole, (0, 1)), frames_of(whole, (2, 3)))
    drawn = torch.rand(())
    torch.manual_seed(5)
    alone.train()
    for frames in ((0, 1), (2, 3)):
        alone(frames_of(whole, frames))
    assert torch.equal(drawn, torch.rand(()))
    statistics = [{n: b for n, b in each.named_buffers() if "running" in n} for each in (model, alone)]
    assert_same_state(*statistics)


def test_an_epoch_whose_length_is_no_multiple_ends_with_a_smaller_step() -> None:
    seen: list[int] = []

    class Counts(Held):
        def forward(self, batch: dict[str, Any]) -> Any:
            seen.append(len(batch["x"]))
            return super().forward(batch)

    trainer = toy_trainer(model=Counts(), batch_size=1, accumulate=3, epochs=1)
    trainer.run()
    assert (trainer.iteration, trainer.epoch_length, sum(seen), len(seen)) == (3, 3, 8, 8)


class SavesAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration, self.state = iteration, {}

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.iteration:
            self.state = copy.deepcopy(checkpoint_state(trainer))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_r1_a_resume_in_mid_epoch_continues_exactly(at: int, tmp_path: Path) -> None:
    saves, more = SavesAt(at), {"batch_size": 1, "accumulate": 3}
    whole = toy_trainer([saves], model=Held(), **more)
    whole.run()
    again = toy_trainer(model=Held(), **more, seed=99)
    torch.save(saves.state, tmp_path / "a.pth")
    stored = torch.load(tmp_path / "a.pth", weights_only=True)
    load_model_state(again.model, stored["model_state"], "a.pth")
    resume(again, stored)
    again.run()
    assert_same_state(tensors_of(whole.model), tensors_of(again.model))
    assert again.iteration == whole.iteration == 6


@pytest.mark.parametrize("deferred", [False, True])
def test_one_micro_batch_that_is_not_finite_spoils_its_step_only(deferred: bool) -> None:
    guard = FiniteGuard(skip=True, deferred=deferred)
    trainer = toy_trainer(model=Held(), batch_size=1, accumulate=2, epochs=1, guard=guard)
    batches = list(trainer.loader)
    trainer.step(*batches[:2])
    before = tensors_of(trainer.model)
    trainer.step(batches[2], {**batches[3], "factor": math.nan, "frame_id": ["7"]})
    trainer.settle()
    after = {name: value for name, value in tensors_of(trainer.model).items() if name != "global_step"}
    assert_same_state({name: before[name] for name in after}, after)
    assert (guard.skipped, trainer.iteration) == (1, 2)


def test_the_error_names_the_frames_of_all_micro_batches() -> None:
    trainer = toy_trainer(model=Held(), batch_size=1, accumulate=2)
    one, two = list(trainer.loader)[:2]
    with pytest.raises(NonFiniteLossError, match=r"'000001', '000002'"):
        trainer.step({**one, "frame_id": ["000001"], "factor": math.inf}, {**two, "frame_id": ["000002"]})


def test_amp_and_a_gradient_scaler_work_with_it() -> None:
    trainer = toy_trainer(model=Held(), batch_size=1, accumulate=2, use_amp=True)
    trainer.scaler = cpu_grad_scaler(2.0**8)
    before = tensors_of(trainer.model)
    trainer.run()
    assert trainer.iteration == 8 and not torch.equal(before["head.weight"], trainer.model.head.weight)


def test_figures_are_means_and_frames_are_listed_together() -> None:
    assert mean_figures([{"a": 1.0, "b": "x"}, {"a": 2.0, "b": "y"}]) == {"a": 1.5, "b": "y"}
    both = merged(
        [{"frame_id": ["1"], "skipped_frames": ["0"], "bad_data": [7]}, {"frame_id": ["2"], "x": 3}]
    )
    assert both == {"frame_id": ["1", "2"], "skipped_frames": ["0"], "bad_data": [7], "x": 3}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("accumulation_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, Any] = torch.load(out / "0.pt")
    return results


@pytest.mark.slow
def test_ranks_reduce_their_gradients_once_a_step(ranks: dict[str, Any]) -> None:
    assert ranks["reduced, accumulate 2"] * 2 == ranks["reduced, one by one"] > 0


@pytest.mark.slow
def test_two_ranks_with_two_micro_batches_give_the_gradient_of_one_large_batch(ranks: dict[str, Any]) -> None:
    assert ranks["error"] < 1e-6
