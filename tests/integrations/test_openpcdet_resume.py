"""Resuming from a checkpoint: exceptions that OpenPCDet swallows in a bare ``except`` are raised."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from standin_runs import RANDOM, TRUNK, WEIGHTS_ONLY, Run, Standin, frozen_words

from pcdet_freeze import openpcdet

PV = frozen_words(f"{TRUNK},dense_head", *RANDOM)
LOCKED = [*PV, "MODEL.FREEZE.PARAMETERS", "False"]
"""frozen modules in eval mode, whose parameters stay in the optimizer"""
ALL_TRAIN = [*PV, "MODEL.FREEZE.SCHEDULE", f"[{{EPOCH: 1, TRAIN: [{TRUNK},dense_head]}}]"]
"""a schedule that unfreezes everything after one epoch"""


def same(a: Run, b: Run, epoch: int = 3) -> bool:
    left, right = (run.state(epoch)["model_state"] for run in (a, b))
    return all(torch.equal(left[key], right[key]) for key in left)


def plain_data(run: Run, epoch: int) -> None:
    """Remove numpy scalars from a checkpoint, so that torch reads it without the plugin."""
    state = run.state(epoch)
    for group in state["optimizer_state"]["param_groups"]:
        group["lr"] = float(group["lr"])
    torch.save(state, run.checkpoint(epoch))


@pytest.fixture
def stopped(standin: Standin) -> Run:
    """A run that was stopped after one epoch."""
    return standin.train("pv_rcnn", "--epochs", "1", *PV)


def test_r1_the_same_list_resumes_from_the_checkpoint(standin: Standin, stopped: Run) -> None:
    """torch 2.6 refuses numpy scalars in the checkpoint; OpenPCDet alone would then restart at epoch 0."""
    run = standin.train("pv_rcnn", "--epochs", "2", *PV)
    assert run.code == 0 and "start training from epoch 1" in run.err
    assert len(run.losses) == 4 and "certificate intact" in run.err
    plain = standin.train("pv_rcnn", "--epochs", "1", tag="plain", plugin=False)
    again = standin.train("pv_rcnn", "--epochs", "2", tag="plain", plugin=False)
    restarts = 0 if WEIGHTS_ONLY else 1  # without the plugin
    assert plain.losses and f"start training from epoch {restarts}" in again.err


@pytest.mark.parametrize("names", ["backbone_3d", f"{TRUNK}", f"{TRUNK},dense_head,pfe"])
def test_another_list_on_resume_is_an_error_not_a_silent_restart(
    standin: Standin, stopped: Run, names: str
) -> None:
    before = stopped.checkpoint(1).read_bytes()
    run = standin.train("pv_rcnn", "--epochs", "2", *frozen_words(names, *RANDOM))
    assert run.code == 1 and run.losses == []
    assert (
        "can only be resumed with the MODEL.NOT_TRAIN_IN_MULTI_TASK" in run.err and "- dense_head" in run.err
    ) or "+ pfe" in run.err
    assert "--pretrained_model" in run.err
    assert stopped.checkpoint(1).read_bytes() == before


def test_adding_a_list_on_resume_is_an_error_that_says_that_there_was_none(standin: Standin) -> None:
    standin.train("pv_rcnn", "--epochs", "1")
    run = standin.train("pv_rcnn", "--epochs", "2", *PV)
    assert run.code == 1 and "+ dense_head" in run.err and run.losses == []
    assert "checkpoint_epoch_1.pth was written by a run without a list" in run.err


def test_removing_the_list_on_resume_is_an_error(standin: Standin, stopped: Run) -> None:
    run = standin.train("pv_rcnn", "--epochs", "2")
    assert run.code == 1 and "- dense_head" in run.err and run.losses == []


@pytest.mark.parametrize("words", [LOCKED, ALL_TRAIN])
def test_removing_the_list_is_an_error_if_openpcdet_could_load_the_optimizer_state(
    standin: Standin, words: list[str]
) -> None:
    """Its optimizer has as many entries as one without a list."""
    first = standin.train("pv_rcnn", "--epochs", "2", *words)
    os.utime(first.checkpoint(1), (1, 1))
    run = standin.train("pv_rcnn", "--epochs", "3")
    assert run.code == 1 and "- dense_head" in run.err and run.losses == []
    assert "checkpoint_epoch_2.pth was written with others" in run.err


@pytest.mark.parametrize(
    ("damage", "error"), [("certificate", "CertificateError"), ("entries", "CheckpointError")]
)
def test_removing_the_list_is_an_error_if_the_freeze_metadata_is_damaged(
    standin: Standin, damage: str, error: str
) -> None:
    first = standin.train("pv_rcnn", "--epochs", "1", *LOCKED)
    state = first.state(1)
    state["pcdet_freeze"]["freeze"][damage] = 7
    torch.save(state, first.checkpoint(1))
    run = standin.train("pv_rcnn", "--epochs", "2")
    assert run.code == 1 and run.losses == [] and error in run.err, run.err


def test_without_a_list_a_checkpoint_without_a_list_is_left_to_openpcdet(standin: Standin) -> None:
    """Files of other tools may hold any epoch."""
    first = standin.train("pv_rcnn", "--epochs", "1")
    torch.save({**first.state(1), "epoch": -1}, first.checkpoint(1))
    openpcdet.install()
    model = standin.build("pv_rcnn")
    logger = logging.getLogger("standin")
    assert model.load_params_with_optimizer(str(first.checkpoint(1)), logger=logger) == (4, -1)


@pytest.mark.parametrize("words", [[], frozen_words("backbone_3d", *RANDOM)])
def test_the_error_names_the_newest_checkpoint_of_several(standin: Standin, words: list[str]) -> None:
    first = standin.train("pv_rcnn", "--epochs", "2", *PV)
    os.utime(first.checkpoint(1), (1, 1))
    run = standin.train("pv_rcnn", "--epochs", "3", *words)
    assert run.code == 1 and "checkpoint_epoch_2.pth was written with others" in run.err


def test_changing_parameters_to_false_on_resume_is_an_error(standin: Standin, stopped: Run) -> None:
    run = standin.train("pv_rcnn", "--epochs", "2", *PV, "MODEL.FREEZE.PARAMETERS", "False")
    assert run.code == 1 and "+ PARAMETERS: False" in run.err


def test_another_list_with_ckpt_is_the_same_error(standin: Standin, stopped: Run) -> None:
    words = ["--ckpt", str(stopped.checkpoint(1)), *frozen_words("backbone_3d", *RANDOM)]
    run = standin.train("pv_rcnn", "--epochs", "2", *words, tag="other")
    assert run.code == 1 and "can only be resumed with the MODEL.NOT_TRAIN_IN_MULTI_TASK" in run.err


def test_a_broken_checkpoint_is_named_and_the_run_resumes_from_an_older_one(standin: Standin) -> None:
    first = standin.train("pv_rcnn", "--epochs", "2", *PV)
    os.utime(first.checkpoint(1), (1, 1))
    first.checkpoint(2).write_bytes(first.checkpoint(2).read_bytes()[:2000])
    run = standin.train("pv_rcnn", "--epochs", "2", *PV)
    assert run.code == 0 and "start training from epoch 1" in run.err
    assert (
        "checkpoint_epoch_2.pth could not be loaded" in run.err
        and "checkpoint_epoch_1.pth instead" in run.err
    )


def test_a_run_whose_checkpoints_are_all_broken_does_not_restart_at_epoch_0(
    standin: Standin, stopped: Run
) -> None:
    stopped.checkpoint(1).write_bytes(b"not a checkpoint")
    run = standin.train("pv_rcnn", "--epochs", "2", *PV)
    assert run.code == 1 and run.losses == []
    assert "A run must resume from its checkpoint" in run.err and "another --extra_tag" in run.err


def test_without_a_list_a_run_resumes_from_a_checkpoint_with_numpy_scalars(standin: Standin) -> None:
    """torch 2.6 refuses them; OpenPCDet alone would then restart at epoch 0."""
    standin.train("pv_rcnn", "--epochs", "1")
    run = standin.train("pv_rcnn", "--epochs", "2")
    assert run.code == 0 and "start training from epoch 1" in run.err and len(run.losses) == 4


def test_without_a_list_the_evaluation_reads_a_checkpoint_with_numpy_scalars(standin: Standin) -> None:
    """``tools/test.py`` and the evaluation after a training call ``load_params_from_file``."""
    path = standin.train("pv_rcnn", "--epochs", "1").checkpoint(1)
    arguments = {"filename": str(path), "logger": logging.getLogger("standin"), "to_cpu": True}
    if WEIGHTS_ONLY:
        with pytest.raises(UnpicklingError):
            standin.build("pv_rcnn").load_params_from_file(**arguments)
    openpcdet.install()
    model = standin.build("pv_rcnn")
    model.load_params_from_file(**arguments)
    stored = torch.load(path, weights_only=False)["model_state"]
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        (PV, "restart at epoch 0"),
        (LOCKED, "without the freeze"),
        (ALL_TRAIN, "optimizer state in another order"),
    ],
)
def test_the_end_of_a_frozen_training_logs_how_it_is_continued(
    standin: Standin, words: list[str], alone: str
) -> None:
    run = standin.train("pv_rcnn", "--epochs", "2", *words)
    (line,) = [line for line in run.err.splitlines() if "to continue this training" in line]
    assert "python -m pcdet_freeze.openpcdet tools/train.py" in line and alone in line
    assert "to continue" not in standin.train("pv_rcnn", "--epochs", "1", tag="plain").err


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(("epoch", "lines"), [(1, 0), (2, 1)])
def test_a_frozen_training_that_raises_logs_how_its_last_checkpoint_is_continued(
    standin: Standin, error: type[BaseException], epoch: int, lines: int
) -> None:
    """In its first epoch there is no checkpoint yet."""

    def stop() -> None:
        utils = standin.module("train_utils.train_utils")
        plain = utils.one_epoch
        finished: list[Any] = []

        def one_epoch(*args: Any) -> Any:
            if len(finished) == epoch - 1:
                raise error("stopped")
            finished.append(plain(*args))
            return finished[-1]

        utils.one_epoch = one_epoch

    standin.prepare = stop
    with pytest.raises(error, match="stopped"):
        standin.train("pv_rcnn", "--epochs", "2", *PV)
    log = (standin.root / "output/toy_models/pv_rcnn/default/train.log").read_text()
    assert log.count("to continue this training") == lines and "certificate intact" not in log


def test_openpcdet_alone_loads_the_state_of_an_unfrozen_run_in_another_order(standin: Standin) -> None:
    """What that line warns of after a schedule that unfroze everything."""
    first = standin.train("pv_rcnn", "--epochs", "2", *ALL_TRAIN)
    plain_data(first, 2)
    first.checkpoint(1).unlink()
    with pytest.raises(RuntimeError, match=r"shape|size"):
        standin.train("pv_rcnn", "--epochs", "3", plugin=False)
    assert "start training from epoch 2" in (first.folder / "train.log").read_text()


def test_openpcdet_alone_restarts_at_epoch_0_from_a_checkpoint_of_a_frozen_run(
    standin: Standin, stopped: Run
) -> None:
    """What that line warns of."""
    plain_data(stopped, 1)
    run = standin.train("pv_rcnn", "--epochs", "2", plugin=False)
    assert "start training from epoch 0" in run.err and len(run.losses) == 8


class Opaque:
    """An object that torch.load refuses with weights_only."""


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
def test_a_weights_only_error_comes_with_advice(standin: Standin, stopped: Run) -> None:
    """torch before 2.6 has no such error, and resumes."""
    state = torch.load(stopped.checkpoint(1), weights_only=False)
    torch.save({**state, "extra": Opaque()}, stopped.checkpoint(1))
    run = standin.train("pv_rcnn", "--epochs", "2", *PV)
    if WEIGHTS_ONLY:
        assert run.code == 1 and "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in run.err and run.losses == []
        standin.monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        run = standin.train("pv_rcnn", "--epochs", "2", *PV)
    assert run.code == 0 and "start training from epoch 1" in run.err, run.err


def test_p1_a_checkpoint_that_does_not_match_its_certificate_is_an_error(
    standin: Standin, stopped: Run
) -> None:
    state = torch.load(stopped.checkpoint(1), weights_only=False)
    state["model_state"]["backbone_3d.conv1.0.weight"] += 1
    torch.save(state, stopped.checkpoint(1))
    run = standin.train("pv_rcnn", "--epochs", "2", *PV)
    assert run.code == 1 and "backbone_3d.conv1.0.weight changed" in run.err and run.losses == []


def test_h6_a_checkpoint_of_the_plugin_loads_without_the_plugin(standin: Standin, stopped: Run) -> None:
    standin.forget()
    model = standin.build("pv_rcnn", None)
    model.load_state_dict(torch.load(stopped.checkpoint(1), weights_only=False)["model_state"])


def test_a_new_stage_starts_from_weights_trained_with_another_list(standin: Standin, stopped: Run) -> None:
    words = ["--pretrained_model", str(stopped.checkpoint(1)), *frozen_words("backbone_3d")]
    run = standin.train("pv_rcnn", "--epochs", "1", *words, tag="next")
    assert run.code == 0, run.err
    left, right = (r.state(1)["model_state"] for r in (stopped, run))
    assert all(torch.equal(left[key], right[key]) for key in left if key.startswith("backbone_3d"))


def test_the_certificate_is_taken_after_loading(standin: Standin, stopped: Run) -> None:
    stored = stopped.state(1)["pcdet_freeze"]["freeze"]["certificate"]["digests"]
    words = ["--pretrained_model", str(stopped.checkpoint(1)), *frozen_words(f"{TRUNK},dense_head")]
    run = standin.train("pv_rcnn", "--epochs", "1", *words, tag="next")
    assert run.state(1)["pcdet_freeze"]["freeze"]["certificate"]["digests"] == stored
    assert Path(run.folder / "train.log").read_text().index("Done (loaded") < run.err.index(
        "certificate intact"
    )
