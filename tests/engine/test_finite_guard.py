"""OPTIMIZATION.ON_NONFINITE: no NaN in weights, states or checkpoints; the verdict may be read late."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of, toy_trainer
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import torchrun, worker

from pcdet_freeze.engine import finite_guard
from pcdet_freeze.engine.checkpoint.io import checkpoint_state
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.finite_guard import FiniteGuard
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.gradient_norms import GradientNorms
from pcdet_freeze.engine.trainer import NonFiniteLossError, Trainer

OPTIMIZERS = ["adam_onecycle", "adam", "sgd"]


class Poison(ToyModel):
    """A toy whose gradient (or loss) is NaN in chosen forwards; its loss is never read."""

    def __init__(self, *bad: int, loss: bool = False) -> None:
        torch.manual_seed(0)  # equal weights in every run
        super().__init__()
        self.bad, self.with_loss, self.calls = bad, loss, 0

    def forward(self, batch: dict[str, Any]) -> Any:
        number, self.calls = self.calls, self.calls + 1
        x = batch["x"] * math.nan if number in self.bad and self.with_loss else batch["x"]
        loss = ((self.head(self.vfe(x)).squeeze(1) - batch["y"]) ** 2).mean()
        if number in self.bad:
            loss = loss + self.head.bias.sub(self.head.bias.detach()).abs().sqrt().sum()
        return {"loss": loss}, {}, {}


def guard(skip: bool = True, deferred: bool | None = None, limit: int | None = None) -> FiniteGuard:
    return FiniteGuard(skip=skip, deferred=deferred, limit=limit)


def run(model: ToyModel, guard: FiniteGuard, **more: Any) -> Trainer:
    trainer = toy_trainer(model=model, guard=guard, **more)
    trainer.run()
    return trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    return checkpoint_state(trainer) | {"pcdet_freeze": None, "version": None}


def has_nan(state: Any) -> bool:
    if isinstance(state, dict):
        return any(has_nan(value) for value in state.values())
    return torch.is_tensor(state) and state.is_floating_point() and not bool(state.isfinite().all())


@pytest.mark.parametrize("clip", [None, 10.0])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_nan_gradient_never_reaches_the_weights_clipped_or_not(clip: float | None, deferred: bool) -> None:
    trainer = toy_trainer(model=Poison(2), guard=guard(skip=False, deferred=deferred))
    trainer.clip_norm = clip
    with pytest.raises(NonFiniteLossError, match=r"gradient norm must be finite.*iteration 2.*head\.bias"):
        trainer.run()
    assert not has_nan(trainer.model.state_dict()) and not has_nan(trainer.optimizer.state_dict()["state"])
    assert (trainer.iteration, trainer.offset, trainer.model.global_step.item()) == (2, 2, 2)


def test_the_weights_of_a_late_error_are_those_before_the_step_that_failed() -> None:
    trainers = []
    for deferred in (False, True):
        trainers.append(toy_trainer(model=Poison(2), guard=guard(False, deferred)))
        with pytest.raises(NonFiniteLossError):
            trainers[-1].run()
    parameters = [{n: p.detach() for n, p in t.model.named_parameters()} for t in trainers]
    assert_same_state(*parameters)
    assert_same_state(*(trainer.optimizer.state_dict()["state"] for trainer in trainers))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_finite_steps_are_the_same_to_the_bit_whenever_the_verdict_is_read(optimizer: str) -> None:
    runs = [run(Poison(), guard(skip, late), optimizer=optimizer) for skip, late in
            ((False, False), (False, True), (True, True))]  # fmt: skip
    for other in runs[1:]:
        assert_same_state(state_of(runs[0]), state_of(other))


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [(0,), (3,), (1, 2), (7,)])
def test_a_step_left_out_late_is_the_same_as_one_left_out_at_once(
    optimizer: str, bad: tuple[int, ...], loss: bool
) -> None:
    runs = [run(Poison(*bad, loss=loss), guard(deferred=late), optimizer=optimizer) for late in (False, True)]
    at_once, late = (state_of(trainer) for trainer in runs)
    for name in ("model_state", "it", "epoch"):
        assert_same_state(at_once[name], late[name])
    for index, state in at_once["optimizer_state"]["state"].items():
        assert_same_state(state, late["optimizer_state"]["state"][index])
    assert runs[0].guard.skipped == runs[1].guard.skipped == len(bad) and not has_nan(late)


def test_each_batch_is_on_its_way_before_the_verdict_of_the_step_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    monkeypatch.setattr(finite_guard, "wait_for", lambda values: [order.append("verdict") is None])
    move = lambda batch, device: order.append("batch")  # noqa: E731
    toy_trainer(epochs=1, model=Poison(), guard=guard(deferred=True), move=move).run()
    assert order == ["batch", "batch", "verdict", "batch", "verdict", "batch", "verdict", "verdict"]


@pytest.mark.parametrize("deferred", [False, True])
def test_a_step_left_out_changes_nothing_but_the_position(deferred: bool) -> None:
    trainer = toy_trainer(model=Poison(3, loss=True), guard=guard(deferred=deferred), max_iters=3)
    trainer.run()
    before, optimizer = tensors_of(trainer.model), checkpoint_state(trainer)["optimizer_state"]["state"]
    states = {key: {k: v.clone() for k, v in value.items()} for key, value in optimizer.items()}
    trainer.max_iters = 4
    trainer.run()
    assert before.pop("global_step") + 1 == trainer.model.global_step == trainer.iteration == 4
    assert_same_state(before, {name: trainer.model.state_dict()[name] for name in before})
    assert_same_state(states, trainer.optimizer.state_dict()["state"])


@pytest.mark.parametrize("deferred", [False, True])
def test_more_skipped_steps_than_the_limit_end_the_run(deferred: bool) -> None:
    with pytest.raises(NonFiniteLossError, match=r"At most 1 steps.*NONFINITE_LIMIT.*number 2"):
        run(Poison(1, 3), guard(deferred=deferred, limit=1))
    assert run(Poison(1, 3), guard(deferred=deferred, limit=2)).results["skipped_steps"] == 2


class SavesAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration, self.state = iteration, {}

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.iteration:
            state = checkpoint_state(trainer)
            model = {name: value.clone() for name, value in state["model_state"].items()}
            self.state = {**state, "model_state": model}


@pytest.mark.parametrize("deferred", [False, True])
def test_a_checkpoint_behind_a_step_that_is_not_finite_is_not_written(deferred: bool) -> None:
    saves = SavesAt(3)
    with pytest.raises(NonFiniteLossError, match="iteration 2"):
        toy_trainer([saves], model=Poison(2), guard=guard(False, deferred)).run()
    assert not saves.state


@pytest.mark.parametrize("deferred", [False, True])
def test_r1_a_resume_knows_how_many_steps_were_skipped_and_continues_exactly(
    deferred: bool, tmp_path: Path
) -> None:
    whole = run(Poison(2, 5), guard(deferred=deferred))
    saves = SavesAt(3)
    toy_trainer([saves], model=Poison(2), guard=guard(deferred=deferred), max_iters=3).run()
    torch.save(saves.state, tmp_path / "at_3.pth")
    model = Poison(5)
    model.calls = 3
    again = toy_trainer(model=model, guard=guard(deferred=deferred), seed=99)
    stored = torch.load(tmp_path / "at_3.pth", weights_only=True)
    load_model_state(model, stored["model_state"], "at_3.pth")
    resume(again, stored)
    again.run()
    assert again.guard.skipped == whole.guard.skipped == 2
    assert_same_state(state_of(whole), state_of(again))


def test_the_warning_of_a_skipped_step_names_frames_and_tensors(caplog: pytest.LogCaptureFixture) -> None:
    trainer = toy_trainer(model=Poison(0), guard=guard())
    with caplog.at_level("WARNING"):
        trainer.step({**next(iter(trainer.loader)), "frame_id": ["000123", "000124"]})
    assert "000123" in caplog.text and "head.bias" in caplog.text and "number 1" in caplog.text


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip", [None, 10.0])
def test_a_deferred_step_reads_one_verdict_that_is_one_step_old_and_nothing_else(clip: float | None) -> None:
    # with SGD: Adam reads its step counters, which are on the CPU with CUDA too
    trainer = toy_trainer(model=Poison(), guard=guard(deferred=True), optimizer="sgd")
    trainer.clip_norm = clip
    batch = next(iter(trainer.loader))
    trainer.step(batch)
    with Waits() as waits:
        trainer.step(batch)
        assert waits.count == 1
        _ = trainer.loss
    assert waits.count == 2


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    for limit in (1e-3, 1e3):
        models = [ToyModel() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        for model in models:
            torch.manual_seed(0)
            (model.head(model.vfe(torch.randn(8, 4))) ** 2).mean().backward()
        norms = GradientNorms.of(torch.optim.SGD(models[0].parameters(), lr=1))
        norms.clip(limit)
        assert torch.equal(norms.total, clip_grad_norm_(models[1].parameters(), limit))
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("finite_guard_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gradient, at once", "gradient, late", "loss, at once", "loss, late"])
def test_a_fault_on_one_rank_is_one_error_on_all(ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["error"] == second["error"] and "must be finite" in first["error"]
    assert "frames: ['1-2']" in first["error"] and ("rank 1:" in first["error"])
    assert ("rank 0:" in first["error"]) == case.startswith("gradient")
    assert_same_state(first["parameters"], second["parameters"])
    assert not has_nan(first["parameters"]) and first["iteration"] == second["iteration"] == 2


@pytest.mark.slow
def test_a_skipped_step_is_skipped_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["skip"] for rank in ranks)
    assert first["skipped"] == second["skipped"] == 1 and not first["error"]
    assert_same_state(first["parameters"], second["parameters"])
