"""A signal finishes the step, writes a checkpoint and ends the run: in one process, with the real Trainer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_toy import assert_same_state, files_in, tensors_of, toy_trainer

from pcdet_freeze.cli.common.exit_code import exit_code
from pcdet_freeze.engine.checkpoint.io import newest_checkpoint
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.stop_signal import StopBeforeEvaluationHook, StopHook
from pcdet_freeze.engine.ranks.stop_agreement import StopAgreement
from pcdet_freeze.engine.run_session import run_session
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.utils.signals import stop_signals
from pcdet_freeze.utils.signals.stop_signals import (
    LAUNCHERS,
    SAME_SIGNAL_S,
    SIGNALS,
    StoppedBySignal,
    StopSignals,
)

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def default_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A background job of a shell ignores SIGINT, under nohup SIGHUP; a launcher changes what is a repeat."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


class Receives(Hook):
    """The process receives a signal in an iteration (0: while the last checkpoint is written)."""

    def __init__(self, number: int, iteration: int, times: int = 1) -> None:
        self.number, self.iteration, self.times = number, iteration, times
        self.calls: list[str] = []
        self.moved = 0

    def send(self) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.number)

    def move(self, batch: Any, device: Any) -> None:
        self.moved += 1
        if self.moved == self.iteration:
            self.send()

    def after_step(self, trainer: Trainer) -> None:
        self.calls.append(f"step {trainer.iteration}")

    def after_train(self, trainer: Trainer) -> None:
        self.calls.append("after_train")
        if self.iteration == 0:
            self.send()

    def on_exception(self, trainer: Trainer) -> None:
        self.calls.append("on_exception")


class Evaluates(Hook):
    def __init__(self) -> None:
        self.done = False

    def after_train(self, trainer: Trainer) -> None:
        self.done = True


def stopped(folder: Path, receives: Receives, *more: Hook) -> Trainer:
    stop = StopHook(folder)
    hooks = [stop, receives, CheckpointHook(folder), StopBeforeEvaluationHook(stop), *more]
    trainer = toy_trainer(hooks, move=receives.move)
    with pytest.raises((KeyboardInterrupt, StoppedBySignal)):
        trainer.run()
    return trainer


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_in_a_step_ends_the_run_after_it_with_the_exit_code_of_a_shell(
    number: int, code: int, tmp_path: Path
) -> None:
    trainer = toy_trainer([StopHook(tmp_path)], move=Receives(number, 2).move)
    assert exit_code(trainer.run) == code
    assert (trainer.iteration, files_in(tmp_path)) == (2, ["latest_model.pth"])


def test_every_hook_sees_the_last_step_and_then_the_end(tmp_path: Path) -> None:
    receives = Receives(signal.SIGTERM, 2)
    stopped(tmp_path, receives)
    assert receives.calls == ["step 1", "step 2", "on_exception"]


@pytest.mark.parametrize("iteration", [1, 3, 4, 5, 8])
def test_a_stopped_run_resumes_to_the_weights_of_an_unbroken_one(iteration: int, tmp_path: Path) -> None:
    """In the middle of an epoch, at its end, and at the end of the run."""
    whole = toy_trainer()
    whole.run()
    stopped(tmp_path, Receives(signal.SIGTERM, iteration))
    trainer = toy_trainer(seed=1)
    found = newest_checkpoint(tmp_path, trainer.logger)
    assert found is not None and found[1]["it"] == iteration
    load_model_state(trainer.model, found[1]["model_state"], found[0])
    resume(trainer, found[1])
    trainer.run()
    assert_same_state(tensors_of(trainer.model), tensors_of(whole.model))


def test_a_signal_while_the_last_checkpoint_is_written_ends_the_run_before_its_evaluation(
    tmp_path: Path,
) -> None:
    evaluates = Evaluates()
    trainer = stopped(tmp_path, Receives(signal.SIGTERM, 0), evaluates)
    assert trainer.epoch == 2 and not evaluates.done
    assert "checkpoint_epoch_2.pth" in files_in(tmp_path)


@pytest.mark.parametrize("iteration", [2, None])
def test_the_former_handlers_are_back_after_the_run(iteration: int | None, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    if iteration is None:
        stop = StopHook(tmp_path)
        toy_trainer([stop, StopBeforeEvaluationHook(stop)]).run()
    else:
        stopped(tmp_path, Receives(signal.SIGUSR1, iteration))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_two_signals_at_once_are_one_request(tmp_path: Path) -> None:
    """torchrun sends each signal on to processes that have it from the terminal already."""
    trainer = stopped(tmp_path, Receives(signal.SIGINT, 2, times=3))
    assert trainer.iteration == 2 and files_in(tmp_path) == ["latest_model.pth"]


def test_a_second_signal_interrupts_at_once(tmp_path: Path) -> None:
    class Again(Receives):
        def move(self, batch: Any, device: Any) -> None:
            super().move(batch, device)
            time.sleep(SAME_SIGNAL_S * (self.moved == 2))
            if self.moved == 2:
                self.send()

    receives = Again(signal.SIGINT, 2)
    trainer = stopped(tmp_path, receives)
    assert receives.calls == ["step 1", "on_exception"] and files_in(tmp_path) == []
    trainer.run()  # has nothing of the request
    assert trainer.iteration == 8


def received(monkeypatch: pytest.MonkeyPatch, *arrivals: tuple[float, int]) -> list[int]:
    """The signals that have their former effect; each arrives at its time (s)."""
    now, effects = [0.0], list[int]()
    # of this module only: other threads of the process need a clock that goes on
    monkeypatch.setattr(stop_signals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: effects.append(number))
    signals = StopSignals()
    signals.install()
    for at, number in arrivals:
        now[0] = at
        os.kill(os.getpid(), number)
    signals.restore()
    return effects


def test_only_a_signal_of_the_same_kind_is_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM sends SIGUSR1 and later SIGTERM; torchrun sends SIGTERM after a SIGINT of the terminal."""
    first, other = (0.0, signal.SIGUSR1), (20.0, signal.SIGTERM)
    assert received(monkeypatch, first, other) == []
    assert received(monkeypatch, first, other, (20.6, signal.SIGTERM)) == [signal.SIGTERM]
    assert received(monkeypatch, first, other, (21.0, signal.SIGUSR1)) == [signal.SIGUSR1]


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "SLURM_PROCID"])
def test_under_a_launcher_signals_within_five_seconds_are_one(
    launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun sends a Ctrl-C again, on a loaded machine seconds later."""
    monkeypatch.setenv(launcher, "0")
    first = (0.0, signal.SIGINT)
    assert received(monkeypatch, first, (4.9, signal.SIGINT)) == []
    assert received(monkeypatch, first, (5.1, signal.SIGINT)) == [signal.SIGINT]


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals()
    try:
        signals.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signals.restore()
        signal.signal(signal.SIGHUP, former)


def test_a_run_that_was_stopped_can_continue(tmp_path: Path) -> None:
    trainer = stopped(tmp_path, Receives(signal.SIGINT, 3))
    trainer.run()
    assert trainer.iteration == 8


def test_the_line_names_the_signal_and_the_advice(capsys: Any) -> None:
    with pytest.raises(StoppedBySignal), run_session() as session:
        session.advice = lambda: "Resume from x.pth."
        raise StoppedBySignal(signal.SIGTERM)
    assert "Stopped by SIGTERM. Resume from x.pth." in capsys.readouterr().out


def test_what_follows_a_stop_gets_the_signal(tmp_path: Path) -> None:
    got: list[int] = []
    with pytest.raises(StoppedBySignal):
        move = Receives(signal.SIGUSR1, 1).move
        toy_trainer([StopHook(tmp_path, on_stop=got.append)], move=move).run()
    assert got == [signal.SIGUSR1] and files_in(tmp_path) == ["latest_model.pth"]


class Notes(Hook):
    """Records where the time of an iteration counts."""

    def __init__(self) -> None:
        self.agreement = StopAgreement(0, 1, StopSignals())
        self.timed: dict[str, set[bool]] = {}

    def note(self, name: str) -> None:
        self.timed.setdefault(name, set()).add(self.agreement.timed_iteration is not None)

    def move(self, batch: Any, device: Any) -> None:
        self.note("step")

    def before_epoch(self, trainer: Trainer) -> None:
        self.note("before_epoch")

    def after_epoch(self, trainer: Trainer) -> None:
        self.note("after_epoch")

    def after_train(self, trainer: Trainer) -> None:
        self.note("after_train")
        assert self.agreement.running  # the end of torchrun does not end a process that writes a checkpoint


@pytest.mark.parametrize("max_iters", [None, 6])
def test_the_time_of_hooks_between_epochs_is_not_the_time_of_an_iteration(
    max_iters: int | None, tmp_path: Path
) -> None:
    """An evaluation or a checkpoint may take longer than --timeout."""
    notes = Notes()
    toy_trainer(
        [StopHook(tmp_path, agreement=notes.agreement), notes], move=notes.move, max_iters=max_iters
    ).run()
    between = {key: {False} for key in ("before_epoch", "after_epoch", "after_train")}
    assert notes.timed == {"step": {True}} | between
