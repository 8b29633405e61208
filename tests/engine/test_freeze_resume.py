"""Resuming under a list: the same one goes on to the bit; another one maps state by name and says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import assert_same_state, tensors_of
from freeze_runs import cfg_of, frozen_trainer, phase, resumed

from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.freeze import MultiTaskFreezeHook
from pcdet_freeze.engine.optim.optimizer import parameter_names
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError, CheckpointError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.plan import ScheduleEntry
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY, FreezeMetadata
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """In the middle of the second epoch, under [vfe.0, vfe.1]."""
    frozen_trainer([CheckpointHook(tmp_path)], cfg_of("vfe.0", "vfe.1"), max_iters=6).run()
    return tmp_path / "checkpoint_epoch_2.pth"


def state_by_name(trainer: Trainer) -> dict[str, Any]:
    return {
        n: trainer.optimizer.state[p]
        for n, p in trainer.model.named_parameters()
        if p in trainer.optimizer.state
    }


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


OTHER_LISTS = [
    ((), ["- vfe.0", "- vfe.1"], 2, 0, 4),
    (("head",), ["+ head", "- vfe.0", "- vfe.1"], 0, 2, 4),
    (("vfe.0", "vfe.1", "head.*"), ["+ head.*"], 2, 0, 0),
    (("vfe.1",), ["- vfe.0"], 2, 0, 2),
]


@pytest.mark.parametrize(("entries", "diff", "kept", "dropped", "new"), OTHER_LISTS[:2] + OTHER_LISTS[3:])
def test_r2_another_list_keeps_state_by_name_and_prints_both_diffs(
    saved: Path, entries: tuple[str, ...], diff: list[str], kept: int, dropped: int, new: int, caplog: Any
) -> None:
    stored = load_checkpoint(saved)
    trainer = resumed(saved, cfg_of(*entries))
    text = warnings_of(caplog)
    assert all(f"  {line}" in text for line in diff)
    for kind, count in (("kept", kept), ("dropped", dropped), ("new", new)):
        assert f"  {kind:<8} {count:>5}" in text
    assert (trainer.epoch, trainer.offset, trainer.iteration) == (1, 2, 6)
    assert_same_state(tensors_of(trainer.model), stored["model_state"])
    names = [name for group in stored[CHECKPOINT_KEY]["optimizer_names"] for name in group]
    for name, entry in state_by_name(trainer).items():
        assert_same_state(entry, stored["optimizer_state"]["state"][names.index(name)])
    assert len(state_by_name(trainer)) == kept


def test_r2_a_run_goes_on_under_another_list_and_holds_that_one(saved: Path) -> None:
    trainer = resumed(saved, cfg_of("head"))
    before = tensors_of(trainer.model)
    trainer.run()
    after = tensors_of(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert trainer.iteration == 8
    assert {n for n in before if n not in moved} == {"head.weight", "head.bias"}


def test_r2_the_same_list_in_another_order_goes_on_to_the_bit_and_says_so(saved: Path, caplog: Any) -> None:
    whole = frozen_trainer(cfg=cfg_of("vfe.0", "vfe.1"))
    whole.run()
    trainer = resumed(saved, cfg_of("vfe.1", "vfe.0"))
    assert "another freeze list" in warnings_of(caplog) and "dropped" not in warnings_of(caplog)
    trainer.run()
    assert_same_state(tensors_of(trainer.model), tensors_of(whole.model))
    assert_same_state(trainer.optimizer.state_dict(), whole.optimizer.state_dict())


def test_r2_the_same_list_says_that_all_was_kept_and_warns_of_nothing(saved: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    resumed(saved, cfg_of("vfe.0", "vfe.1"))
    assert warnings_of(caplog) == ""
    assert "kept         2" in caplog.text and "dropped      0" in caplog.text


def test_r2_held_layers_in_place_of_frozen_parameters_are_told_too(saved: Path, caplog: Any) -> None:
    resumed(saved, cfg_of("vfe.0", "vfe.1", PARAMETERS=False))
    assert "- PARAMETERS: True\n  + PARAMETERS: False" in warnings_of(caplog)
    assert "new          4" in warnings_of(caplog)


def test_r2_what_both_lists_freeze_must_be_what_the_certificate_says(saved: Path) -> None:
    state = load_checkpoint(saved)
    state["model_state"]["vfe.1.running_var"][2] += 1
    save_checkpoint(state, saved)
    for entries in (("vfe.1",), ("vfe",), ("vfe.1", "vfe.0")):
        with pytest.raises(CertificateError, match=r"its own certificate[\s\S]*vfe\.1\.running_var"):
            resumed(saved, cfg_of(*entries))
    resumed(saved, cfg_of("vfe.0"))


@pytest.mark.parametrize("optimizer", ["adam_onecycle", "adam", "sgd"])
def test_r2_a_checkpoint_of_openpcdet_goes_on_under_a_list(
    tmp_path: Path, optimizer: str, caplog: Any
) -> None:
    frozen_trainer([CheckpointHook(tmp_path)], cfg_of(), optimizer=optimizer, epochs=1).run()
    path = tmp_path / "checkpoint_epoch_1.pth"
    state = load_checkpoint(path)
    del state[CHECKPOINT_KEY]
    save_checkpoint(state, path)
    trainer = resumed(path, cfg_of("vfe"), optimizer=optimizer)
    assert "+ vfe" in warnings_of(caplog) and "dropped      4" in warnings_of(caplog)
    assert (trainer.epoch, trainer.iteration) == (1, 4) and len(state_by_name(trainer)) == 2
    trainer.run()


REFUSED = {
    "no optimizer_state": lambda state: state.update(optimizer_state=None),
    "optimizer is Adam": lambda state: state[CHECKPOINT_KEY].update(optimizer_kind="Adam"),
    "not in this model: encoder": lambda state: state[CHECKPOINT_KEY].update(
        optimizer_names=[["encoder", "head.bias"], []]
    ),
    "names for": lambda state: state[CHECKPOINT_KEY].update(optimizer_names=[["head.bias"], []]),
    "stores no parameter names": lambda state: state.pop(CHECKPOINT_KEY),
}


@pytest.mark.parametrize("told", REFUSED)
def test_r2_what_cannot_be_mapped_is_an_error_that_names_pretrained_model(saved: Path, told: str) -> None:
    state = load_checkpoint(saved)
    if told == "no optimizer_state":
        del state["optimizer_state"]
        state["optimizer_state"] = None
    REFUSED[told](state)
    save_checkpoint(state, saved)
    told = "optimizer_state" if told == "no optimizer_state" else told
    with pytest.raises(CheckpointError, match=rf"{told}[\s\S]*--pretrained_model"):
        resumed(saved, cfg_of("vfe"))


def test_h10_the_header_tells_where_the_run_stands_and_under_which_list(saved: Path) -> None:
    header = FreezeMetadata.of(load_checkpoint(saved))
    assert (header.begun, header.entries, header.schedule) == (2, ("vfe.0", "vfe.1"), ())
    assert header.certificate is not None and len(header.certificate.digests) == 7
    assert FreezeMetadata.of(None) == FreezeMetadata()
    assert FreezeMetadata.of({"epoch": 3, "model_state": {}}).begun == 3


def test_r2_the_diff_of_lists_shows_what_moved_and_another_schedule() -> None:
    header = FreezeMetadata(0, ("vfe", "head", "!vfe.1"), schedule=(ScheduleEntry(1, ("vfe",)),))
    plan = FreezePlan(("vfe", "!vfe.1", "head"), schedule=(ScheduleEntry(2, ("vfe",), 0.1),))
    lines = header.changes(plan)
    assert sum("head" in line or "!vfe.1" in line for line in lines) == 2
    assert "- SCHEDULE: {'EPOCH': 1, 'TRAIN': ['vfe'], 'LR_SCALE': 1.0}" in lines
    assert "+ SCHEDULE: {'EPOCH': 2, 'TRAIN': ['vfe'], 'LR_SCALE': 0.1}" in lines
    assert header.changes(FreezePlan(("vfe", "head", "!vfe.1"), schedule=header.schedule)) == []


def test_r2_another_schedule_maps_state_by_name(tmp_path: Path, caplog: Any) -> None:
    then = cfg_of("vfe", SCHEDULE=[phase(1, "vfe.1", LR_SCALE=0.1)])
    frozen_trainer([CheckpointHook(tmp_path)], then, epochs=3, max_iters=6).run()
    path = tmp_path / "checkpoint_epoch_2.pth"
    again = resumed(path, cfg_of("vfe"), epochs=3)
    assert "dropped      2  vfe.1.weight, vfe.1.bias" in warnings_of(caplog)
    assert again.optimizer.state.keys() == {again.model.head.weight, again.model.head.bias}
    caplog.clear()
    more = resumed(path, cfg_of("vfe", SCHEDULE=[phase(1, "vfe", LR_SCALE=0.5)]), epochs=3)
    assert "new          2  vfe.0.weight, vfe.0.bias" in warnings_of(caplog)
    assert [g.get("lr_scale") for g in more.optimizer.param_groups] == [None, None, 0.5, 0.5]
    assert parameter_names(more.model, more.optimizer)[3] == ["vfe.1.weight", "vfe.1.bias"]
    (hook,) = (hook for hook in more.hooks if isinstance(hook, MultiTaskFreezeHook))
    assert hook.handle.names == ()
    for trainer in (again, more):
        trainer.run()


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_r3_a_list_that_trains_in_the_end_is_not_called_absent(
    tmp_path: Path, caplog: Any, from_checkpoint: bool
) -> None:
    caplog.set_level(logging.INFO)
    cfg = cfg_of("vfe", SCHEDULE=[phase(1, "vfe")])
    if from_checkpoint:
        frozen_trainer([CheckpointHook(tmp_path)], cfg, epochs=2).run()
        caplog.clear()
        resumed(tmp_path / "checkpoint_epoch_2.pth", cfg, epochs=3).run()
    else:
        frozen_trainer(cfg=cfg, epochs=2).run()
    assert caplog.text.count("all modules of the list are unfrozen") == 1
    assert "is absent, null or empty" not in caplog.text
