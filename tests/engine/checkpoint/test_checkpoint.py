"""Checkpoints: written whole, read as plain data, resumed exactly or refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, files_in, tensors_of, toy_trainer
from torch import nn

from pcdet_freeze.engine.checkpoint.io import cfg_digest, checkpoint_state, epoch_of, prune, save_checkpoint
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state, load_pretrained
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook, TimedCheckpointHook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

LOGGER = logging.getLogger("pcdet_freeze.test")


class SaveAt(Hook):
    """Writes x.pth after iteration ``n``, in the middle of whatever epoch that is."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.n = path, n

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.n:
            save_checkpoint(checkpoint_state(trainer), self.path)


def resumed(path: Path, hooks: Any = (), **more: Any) -> Trainer:
    """A fresh trainer with other initial weights, which takes up the run in ``path``."""
    trainer, state = toy_trainer(hooks, seed=99, **more), load_checkpoint(path)
    load_model_state(trainer.model, state["model_state"], path)
    resume(trainer, state)
    return trainer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    toy_trainer([CheckpointHook(tmp_path)], epochs=1).run()
    return tmp_path / "checkpoint_epoch_1.pth"


@pytest.mark.parametrize("iteration", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("optimizer", ["adam_onecycle", "adam", "sgd"])
def test_r1_a_resumed_run_ends_as_one_without_a_break(tmp_path: Path, iteration: int, optimizer: str) -> None:
    path = tmp_path / "x.pth"
    whole = toy_trainer([SaveAt(path, iteration)], optimizer=optimizer)
    whole.run()
    second = resumed(path, optimizer=optimizer)
    assert second.iteration == iteration
    second.run()
    assert_same_state(second.model.state_dict(), whole.model.state_dict())
    assert_same_state(second.optimizer.state_dict(), whole.optimizer.state_dict())


def test_r1_a_run_resumed_at_the_end_of_an_epoch_ends_as_one_without_a_break(tmp_path: Path) -> None:
    whole = toy_trainer([CheckpointHook(tmp_path)], epochs=3)
    whole.run()
    second = resumed(tmp_path / "checkpoint_epoch_1.pth", epochs=3)
    assert (second.epoch, second.offset, second.iteration) == (1, 0, 4)
    second.run()
    assert_same_state(second.model.state_dict(), whole.model.state_dict())


def test_r1_a_run_may_be_broken_off_twice(tmp_path: Path) -> None:
    whole = toy_trainer()
    whole.run()
    toy_trainer([SaveAt(tmp_path / "a.pth", 3)], max_iters=3).run()
    resumed(tmp_path / "a.pth", [SaveAt(tmp_path / "b.pth", 6)], max_iters=6).run()
    last = resumed(tmp_path / "b.pth")
    last.run()
    assert_same_state(last.model.state_dict(), whole.model.state_dict())


def test_a_checkpoint_has_openpcdets_keys_and_ours_under_one(saved: Path) -> None:
    state = load_checkpoint(saved)
    assert set(state) == {"epoch", "it", "model_state", "optimizer_state", "version", CHECKPOINT_KEY}
    assert (state["epoch"], state["it"]) == (1, 4)
    assert state["version"].startswith("pcdet_freeze+")
    assert state[CHECKPOINT_KEY]["optimizer_names"] == [
        ["vfe.0.weight", "vfe.0.bias", "head.weight", "head.bias"], ["vfe.1.weight", "vfe.1.bias"],
    ]  # fmt: skip


def test_h6_the_model_state_has_the_detectors_own_keys(saved: Path) -> None:
    assert list(load_checkpoint(saved)["model_state"]) == list(ToyModel().state_dict())


def test_hooks_may_add_plain_data_and_may_refuse(tmp_path: Path) -> None:
    class Adds(Hook):
        def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
            ours["mine"] = {"names": ["a"], "count": trainer.iteration}

    class Refuses(Hook):
        def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
            raise CheckpointError("no")

    toy_trainer([Adds(), CheckpointHook(tmp_path)], epochs=1).run()
    assert load_checkpoint(tmp_path / "checkpoint_epoch_1.pth")[CHECKPOINT_KEY]["mine"] == {
        "names": ["a"],
        "count": 4,
    }
    with pytest.raises(CheckpointError):
        toy_trainer([Refuses(), CheckpointHook(tmp_path / "none")], epochs=1).run()
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_half(tmp_path: Path) -> None:
    class Unpicklable:
        def __reduce__(self) -> Any:
            raise OSError("disk full")

    path = tmp_path / "x.pth"
    save_checkpoint({"model_state": {}, "it": 1}, path)
    with pytest.raises(CheckpointError, match="disk full"):
        save_checkpoint({"model_state": {"w": torch.zeros(9)}, "bad": Unpicklable()}, path)
    assert files_in(tmp_path) == ["x.pth"] and load_checkpoint(path)["it"] == 1


def test_ctrl_c_while_writing_leaves_the_old_file_and_nothing_half(tmp_path: Path) -> None:
    class Interrupts:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    path = tmp_path / "x.pth"
    save_checkpoint({"model_state": {}, "it": 1}, path)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"model_state": {}, "bad": Interrupts()}, path)
    assert files_in(tmp_path) == ["x.pth"] and load_checkpoint(path)["it"] == 1


def test_only_the_oldest_of_ours_are_pruned(tmp_path: Path) -> None:
    for name in ("latest_model.pth", "checkpoint_epoch_1_best.pth", "mine.pth"):
        (tmp_path / name).touch()
    toy_trainer([CheckpointHook(tmp_path, keep=2)], epochs=4).run()
    assert files_in(tmp_path) == ["checkpoint_epoch_1_best.pth", "checkpoint_epoch_3.pth",
                                  "checkpoint_epoch_4.pth", "latest_model.pth", "mine.pth"]  # fmt: skip


def test_pruning_goes_by_epoch_and_always_leaves_one(tmp_path: Path) -> None:
    for n in (2, 10, 9):
        (tmp_path / f"checkpoint_epoch_{n}.pth").touch()
    assert [epoch_of(path) for path in prune(tmp_path, 0)] == [2, 9]


@pytest.mark.parametrize(("every", "names"), [(1, [1, 2, 3]), (2, [2, 3]), (5, [3])])
def test_the_last_state_is_always_saved(tmp_path: Path, every: int, names: list[int]) -> None:
    toy_trainer([CheckpointHook(tmp_path, every=every)], epochs=3).run()
    assert files_in(tmp_path) == [f"checkpoint_epoch_{n}.pth" for n in names]


def test_max_iters_writes_a_checkpoint_that_goes_on_in_mid_epoch(tmp_path: Path) -> None:
    toy_trainer([CheckpointHook(tmp_path)], max_iters=6).run()
    state = load_checkpoint(tmp_path / "checkpoint_epoch_2.pth")
    assert (state["epoch"], state["it"]) == (1, 6)
    assert state[CHECKPOINT_KEY]["sampler"] == {
        "epoch": 1, "offset": 2, "length": 4, "batches": 4, "accumulate": 1
    }  # fmt: skip


def test_latest_model_is_written_by_the_clock(tmp_path: Path) -> None:
    ticks = iter(range(0, 1000, 10))
    hook = TimedCheckpointHook(tmp_path, 30, clock=lambda: next(ticks))
    toy_trainer([hook], epochs=1).run()
    state = load_checkpoint(tmp_path / "latest_model.pth")
    assert files_in(tmp_path) == ["latest_model.pth"] and state["it"] == 3


class OtherModel(ToyModel):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.extra = nn.Linear(1, 1)


def test_a_checkpoint_of_another_model_is_one_error_that_lists_all_and_changes_nothing(saved: Path) -> None:
    model = OtherModel()
    del model.vfe
    before = tensors_of(model)
    with pytest.raises(CheckpointError) as caught:
        load_model_state(model, load_checkpoint(saved)["model_state"], saved)
    text = str(caught.value)
    assert "missing         2  extra.weight, extra.bias" in text
    assert "unexpected      7  vfe.0.weight, vfe.0.bias, vfe.1.weight, vfe.1.bias and 3 more" in text
    assert "other shape     2  head.weight (1, 8) for (2, 8), head.bias (1,) for (2,)" in text
    assert_same_state(before, tensors_of(model))


def test_pretrained_tensors_are_loaded_where_name_and_shape_fit(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ToyModel()
    model.extra = nn.Linear(1, 1)
    caplog.set_level(logging.INFO)
    fit = load_pretrained(model, saved, LOGGER)
    assert fit.missing == ("extra.weight", "extra.bias") and not fit.unexpected
    assert_same_state(load_checkpoint(saved)["model_state"]["head.weight"], model.head.weight.data)
    assert "loaded         10" in caplog.text and "missing         2  extra.weight, extra.bias" in caplog.text


def test_a_pretrained_tensor_of_another_shape_is_an_error_and_changes_nothing(saved: Path) -> None:
    model = OtherModel()
    before = tensors_of(model)
    with pytest.raises(CheckpointError, match=r"head\.weight \(1, 8\) for \(2, 8\)"):
        load_pretrained(model, saved, LOGGER)
    assert_same_state(before, tensors_of(model))


def test_a_pretrained_model_that_shares_nothing_is_an_error(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="none fits"):
        load_pretrained(nn.Linear(2, 2), saved, LOGGER)


def test_a_checkpoint_without_our_part_goes_on_at_its_epoch(saved: Path) -> None:
    state = load_checkpoint(saved)
    del state[CHECKPOINT_KEY]
    trainer = toy_trainer()
    resume(trainer, state)
    assert (trainer.epoch, trainer.offset, trainer.iteration) == (1, 0, 4)


def test_a_checkpoint_without_optimizer_state_cannot_be_resumed(saved: Path) -> None:
    state = {**load_checkpoint(saved), "optimizer_state": None}
    with pytest.raises(CheckpointError, match="--pretrained_model"):
        resume(toy_trainer(), state)


@pytest.mark.parametrize("key", ["epoch", "it"])
def test_a_checkpoint_that_does_not_say_where_it_stands_cannot_be_resumed(saved: Path, key: str) -> None:
    state = load_checkpoint(saved)
    save_checkpoint({**state, key: None}, saved)
    with pytest.raises(CheckpointError, match=rf"has no {key}\.[\s\S]*--pretrained_model"):
        resumed(saved)


def test_a_resume_by_another_number_of_processes_says_that_it_is_not_exact(saved: Path, caplog: Any) -> None:
    state = load_checkpoint(saved)
    state[CHECKPOINT_KEY]["rng"] *= 2
    save_checkpoint(state, saved)
    resumed(saved)
    assert "Written by 2 processes, resumed by 1" in caplog.text


def test_mid_epoch_resume_with_another_epoch_length_is_refused(tmp_path: Path) -> None:
    toy_trainer([SaveAt(tmp_path / "x.pth", 3)]).run()
    with pytest.raises(CheckpointError, match=r"of the same length \(4 iterations\), but this one has 2"):
        resumed(tmp_path / "x.pth", batch_size=4)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 1), (2, 3), (4, 1)])
def test_mid_epoch_resume_with_another_accumulate_is_refused(
    tmp_path: Path, batch_size: int, accumulate: int
) -> None:
    """Also where an epoch has as many iterations, since one iteration has other batches."""
    # 2 iterations of 2 batches
    toy_trainer([SaveAt(tmp_path / "x.pth", 1)], epochs=1, accumulate=2).run()
    with pytest.raises(CheckpointError, match=r"OPTIMIZATION\.ACCUMULATE"):
        resumed(tmp_path / "x.pth", batch_size=batch_size, accumulate=accumulate)


def test_accumulate_may_change_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    toy_trainer([CheckpointHook(tmp_path)], epochs=1, accumulate=2).run()
    assert resumed(tmp_path / "checkpoint_epoch_1.pth", accumulate=1).offset == 0


def test_a_checkpoint_without_the_number_of_batches_goes_on_in_mid_epoch(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    toy_trainer([SaveAt(path, 3)]).run()
    state = load_checkpoint(path)
    for key in ("batches", "accumulate"):
        del state[CHECKPOINT_KEY]["sampler"][key]
    save_checkpoint(state, path)
    assert resumed(path).offset == 3


def test_a_config_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert cfg_digest({"a": 1, "b": [1]}) == cfg_digest({"b": [1], "a": 1}) != cfg_digest({"a": 1, "b": [2]})


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "boom"),)

    torch.save({"model_state": {}, "bomb": Bomb()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"a Python object \(posix.mkdir\)[\s\S]*--trust_checkpoint"):
        load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "boom").exists()
