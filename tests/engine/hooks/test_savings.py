"""F4: what freezing saves is measured on copies, logged, and disturbs nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cache_runs
import pytest
import torch
from engine_toy import assert_same_state, tensors_of
from savings_toy import EPOCHS, Stops, WideVfe, trainer_of
from two_processes import torchrun, worker

from pcdet_freeze.engine.checkpoint.io import checkpoint_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.logging import SummaryHook
from pcdet_freeze.engine.hooks.savings import SHORTEST, Cost, Savings, SavingsHook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import set_seed


def end_of(trainer: Trainer) -> dict[str, Any]:
    """Everything that a checkpoint holds (model, optimizer, generators) at the end of a run."""
    set_seed(1)
    trainer.run()
    return {**checkpoint_state(trainer), "loss": trainer.loss}


def test_f4_savings_of_time_and_memory_are_logged_once_and_stand_in_run_json(
    tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    trainer = trainer_of()
    trainer.hooks.append(SummaryHook(tmp_path / "run.json"))
    trainer.run()
    assert caplog.text.count("Freezing saves ") == 1 and caplog.text.count("GB of tensors at the peak") == 1
    found = json.loads((tmp_path / "run.json").read_text())["freezing_saves"]
    assert found.keys() == {"frozen", "nothing_frozen"}
    assert all(cost["seconds"] > 0 for cost in found.values())
    assert found["frozen"]["peak_bytes"] < found["nothing_frozen"]["peak_bytes"]


@pytest.mark.parametrize("entries", [{"FUSE": True}, {"FUSE": False}])
def test_f4_measuring_moves_no_bit_of_a_training(entries: dict[str, Any]) -> None:
    with_it, without = trainer_of(**entries), trainer_of(**entries)
    without.hooks = [hook for hook in without.hooks if not isinstance(hook, SavingsHook)]
    assert_same_state(end_of(with_it), end_of(without))
    assert "freezing_saves" in with_it.results and "freezing_saves" not in without.results


def test_f4_nothing_stays_on_the_model_and_gradients_of_the_step_are_left() -> None:
    def params(trainer: Trainer) -> Any:
        return trainer.model.named_parameters()

    class Looks(Hook):
        def after_step(self, trainer: Trainer) -> None:
            found.append({n: None if p.grad is None else p.grad.clone() for n, p in params(trainer)})

    found: list[Any] = []
    trainer = trainer_of(hooks=[Looks()])
    trainer.hooks.append(Looks())
    trainer.run()
    assert_same_state(found[0], found[1])
    hooks = trainer.model._forward_pre_hooks.values()
    assert not any(isinstance(hook, PicklableHook) for hook in hooks)


def test_f4_short_runs_are_not_measured() -> None:
    short, cut = trainer_of(epochs=(SHORTEST - 1) // 4), trainer_of(max_iters=SHORTEST - 1)
    for trainer in (short, cut):
        assert trainer.iterations_left < SHORTEST
        trainer.run()
        assert "freezing_saves" not in trainer.results


def test_f4_measure_savings_false_measures_nothing() -> None:
    trainer = trainer_of()
    (hook,) = [hook for hook in trainer.hooks if isinstance(hook, SavingsHook)]
    hook.owner.optim_cfg = {**hook.owner.optim_cfg, "MEASURE_SAVINGS": False}
    trainer.run()
    assert "freezing_saves" not in trainer.results


def test_f4_a_resumed_run_counts_what_it_has_before_it() -> None:
    trainer = trainer_of()
    trainer.epoch, trainer.offset = divmod(4 * EPOCHS - SHORTEST + 1, 4)
    assert trainer.iterations_left == SHORTEST - 1


class NeedsLabels(WideVfe):
    """With nothing frozen it wants what no batch has."""

    def forward(self, batch: dict[str, Any]) -> Any:
        if self.vfe[0].weight.requires_grad:
            raise KeyError("gt_boxes")
        return super().forward(batch)


class Counts(WideVfe):
    """Cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


@pytest.mark.parametrize(("model", "said"), [(NeedsLabels, "'gt_boxes'"), (Counts, "cannot be copied")])
def test_f4_where_a_copy_cannot_do_the_steps_the_log_says_why_and_the_run_goes_on(
    model: Any, said: str, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    trainer = trainer_of(model())
    trainer.run()
    assert trainer.iteration == 6 and "freezing_saves" not in trainer.results
    line = next(
        line for line in caplog.text.splitlines() if "savings of freezing could not be measured" in line
    )
    assert said in line


def test_f4_with_norm_layers_held_only_there_is_nothing_to_measure() -> None:
    trainer = trainer_of(PARAMETERS=False)
    assert not any(isinstance(hook, SavingsHook) for hook in trainer.hooks)


def test_f4_copies_read_no_cache_and_the_line_says_so(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    trainer = cache_runs.trainer_of(
        cache_runs.cfg_with(cache_runs.keep(tmp_path)), [Stops()], epochs=SHORTEST
    )
    trainer.run()
    assert "measured on copies of the model, which read no cache." in caplog.text


def test_f4_the_line_gives_both_figures_with_their_shares() -> None:
    line = str(Savings(Cost(0.17, 270_000_000), Cost(0.78, 680_000_000)))
    assert line == (
        "Freezing saves 0.61 of 0.78 s a step (78%) and 0.41 of 0.68 GB of tensors at the peak (60%)"
    )


def test_f4_copies_leave_the_frozen_state_of_the_model_as_it_is() -> None:
    trainer = trainer_of()
    before = tensors_of(trainer.model.vfe)
    trainer.run()
    assert_same_state(tensors_of(trainer.model.vfe), before)
    assert not any(parameter.requires_grad for parameter in trainer.model.vfe.parameters())


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("savings")
    done = torchrun(worker("savings_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def test_f4_two_ranks_measure_and_train_as_without(two_ranks: Any) -> None:
    for found in two_ranks:
        assert found["measured"] == {"plain": True, "off": False}, found["said"]
        assert_same_state(found["plain"], found["off"])


def test_f4_the_copies_of_one_rank_wait_for_no_other(two_ranks: Any) -> None:
    assert two_ranks[0]["alone"].startswith("Freezing saves ")
