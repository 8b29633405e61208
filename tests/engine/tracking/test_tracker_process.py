"""A tracker in its own process: whatever becomes of it, the training goes on and is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_toy import assert_same_state, tensors_of, toy_trainer
from tracker_cases import stand_in

from pcdet_freeze.engine.hooks.logging import TensorboardHook
from pcdet_freeze.engine.launch import require_trackers
from pcdet_freeze.engine.tracking.process import LOGGER, TrackerProcess, Trackers
from pcdet_freeze.engine.tracking.worker import redacted

MESSAGE = {"project": "p", "name": "n", "group": "g", "config": {"MODEL": {"NAME": "A"}}, "store": ""}


def started(folder: Path, resumed: bool = False) -> Trackers:
    trackers = Trackers(["wandb"])
    trackers.start(folder, resumed, MESSAGE)
    return trackers


def seen(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_messages_reach_the_tracker_in_order_and_the_run_is_marked(tmp_path: Path, monkeypatch: Any) -> None:
    file, trackers = stand_in(tmp_path, monkeypatch), started(tmp_path)
    assert trackers.refusals() == []
    trackers.scalars({"train/loss": 1.5}, "iteration", 3, 0.5)
    trackers.scalars({"epoch/val/loss": 2.5}, "epoch", 1, 1)
    trackers.note({"certificate": "1f"})
    (tmp_path / "report.html").touch()
    trackers.add_files("report", "report", [tmp_path / "report.html", tmp_path / "not_there"])
    trackers.finish(None)
    config = {"name": "n", "group": "g", "id": "an id", "resume": None, "config": {"MODEL": {"NAME": "A"}}}
    assert seen(file) == [
        ["init", config],
        ["log", {"train/loss": 1.5, "iteration": 3, "meta_data/epoch": 0.5}],
        ["log", {"epoch/val/loss": 2.5, "meta_data/epoch": 1}],
        ["config", {"certificate": "1f"}],
        ["artefact", ["report-abc", "report", "report.html"]],
        ["finish", 0],
    ]


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError(), 1), (KeyboardInterrupt(), 130), (SystemExit(143), 130)]
)
def test_a_run_that_ends_otherwise_is_marked_so(
    tmp_path: Path, monkeypatch: Any, error: Any, code: int
) -> None:
    file, trackers = stand_in(tmp_path, monkeypatch), started(tmp_path)
    with pytest.raises(type(error)), trackers:
        raise error
    assert seen(file)[-1] == ["finish", code]


def test_a_run_whose_training_is_killed_is_marked_so(tmp_path: Path, monkeypatch: Any) -> None:
    file, tracker = stand_in(tmp_path, monkeypatch), TrackerProcess("wandb", LOGGER)
    tracker.start({**MESSAGE, "folder": str(tmp_path), "resume": None})
    assert tracker.wait_until_started(60) == ""
    tracker._process.stdin.close()  # as when this process ends
    tracker._process.wait(60)
    assert seen(file)[-1] == ["finish", 130]
    tracker._process.stdout.close()


def test_the_id_is_stored_and_a_resumed_run_continues_it(tmp_path: Path, monkeypatch: Any) -> None:
    file = stand_in(tmp_path, monkeypatch)
    for resumed in (False, True, False):
        trackers = started(tmp_path, resumed)
        trackers.finish(None)
    assert json.loads((tmp_path / "tracker_wandb.json").read_text()) == {"id": "abc"}
    assert [what[1]["resume"] for what in seen(file) if what[0] == "init"] == [None, "allow", None]


def test_a_tracker_that_cannot_start_says_why_without_secrets(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    init = "raise ValueError('bad key 0123456789 for https://me:mine@host/x\\nmore')"
    stand_in(tmp_path, monkeypatch, init=init)
    trackers = started(tmp_path)
    assert trackers.refusals() == ["wandb: ValueError: bad key *** for https://***@host/x"]
    trackers.finish(None)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@pytest.mark.parametrize(
    ("init", "why"),
    [
        ("os._exit(3)", "process has ended"),
        ("os.write(4, b'nonsense\\n'); time.sleep(60)", "JSONDecodeError"),
        ("os.write(4, b'1\\n'); time.sleep(60)", "TypeError"),
    ],
)
def test_a_tracker_that_ends_or_talks_nonsense_at_its_start_has_no_run(
    tmp_path: Path, monkeypatch: Any, init: str, why: str
) -> None:
    stand_in(tmp_path, monkeypatch, init=init)
    trackers = started(tmp_path)
    (refusal,) = trackers.refusals()
    assert refusal.startswith("wandb: ") and why in refusal
    trackers.finish(None)


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("raise OSError('no space left')", "no space left"),
        ("os._exit(3)", "process has ended"),
        ("os.write(4, b'nonsense\\n')", "JSONDecodeError"),
    ],
)
def test_trouble_in_a_training_is_one_warning_and_the_training_is_the_same(
    tmp_path: Path, monkeypatch: Any, caplog: Any, log: str, why: str
) -> None:
    stand_in(tmp_path, monkeypatch, log=log)
    trackers = started(tmp_path)
    trackers.refusals()
    trainer = toy_trainer([TensorboardHook(tmp_path / "events", trackers)], epochs=4)
    trainer.run()
    trackers.finish(None)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert why in warning and "wandb" in warning and "training continues" in warning
    alone = toy_trainer(epochs=4)
    alone.run()
    assert_same_state(tensors_of(trainer.model), tensors_of(alone.model))


def test_a_tracker_that_hangs_costs_no_time_until_the_end(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    stand_in(tmp_path, monkeypatch, log="time.sleep(1000)")
    monkeypatch.setattr(Trackers, "FINISH_S", 0.2)
    monkeypatch.setattr("pcdet_freeze.engine.tracking.process.MOST_BYTES", 500_000)
    trackers = started(tmp_path)
    trackers.refusals()
    begin = time.monotonic()
    for iteration in range(8000):  # more than a pipe and the limit hold
        trackers.scalars({"train/loss": 1.0}, "iteration", iteration, 0.5)
    trackers.finish(None)
    assert time.monotonic() - begin < 100
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "does not answer" in warning


def test_a_tracker_that_hangs_at_the_start_is_waited_for_within_the_timeout_of_the_ranks(
    tmp_path: Path, monkeypatch: Any
) -> None:
    stand_in(tmp_path, monkeypatch, init="time.sleep(1000)")
    monkeypatch.setattr(Trackers, "FINISH_S", 0.1)
    with started(tmp_path) as trackers:
        begin = time.monotonic()
        require_trackers(SimpleNamespace(trackers=trackers, options=SimpleNamespace(timeout=0.2)), 0)
        assert time.monotonic() - begin < Trackers.START_S / 2
        trackers._all[0]._process.kill()


@pytest.mark.parametrize("address", ["http://me:p@ss@host/x", "http://token@host/x", "http://:p@host/x"])
def test_no_part_of_a_password_in_an_address_is_repeated(address: str) -> None:
    assert redacted(f"no answer from {address}") == "no answer from http://***@host/x"


def test_the_generators_of_the_training_are_not_used(tmp_path: Path, monkeypatch: Any) -> None:
    stand_in(tmp_path, monkeypatch)
    before = random.getstate(), torch.get_rng_state()
    trackers = started(tmp_path)
    trackers.refusals()
    trackers.finish(None)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_ctrl_c_does_not_reach_the_tracker(tmp_path: Path, monkeypatch: Any) -> None:
    file, trackers = stand_in(tmp_path, monkeypatch), started(tmp_path)
    trackers.refusals()
    process = trackers._all[0]._process
    assert os.getpgid(process.pid) != os.getpgrp()
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    trackers.finish(KeyboardInterrupt())
    assert seen(file)[-1] == ["finish", 130]
