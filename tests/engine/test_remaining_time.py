"""The remaining time of a training is that of its recent iterations and of its pauses between epochs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pcdet_freeze.engine.remaining_time import RemainingTime


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Train for iterations that end at the given seconds; returns the estimate behind the last one."""

    def estimate(*ends: float, total: int, length: int = 4) -> float | None:
        clock = iter(ends)
        monkeypatch.setattr("time.monotonic", lambda: next(clock))
        remaining = RemainingTime()
        for done in range(1, len(ends) + 1):
            epoch, offset = divmod(done - 1, length)
            trainer = SimpleNamespace(
                epoch_number=epoch + 1, offset=offset + 1, epoch_length=length, iterations_left=total - done
            )
            remaining.step(trainer)
        return remaining.left(trainer)

    return estimate


def test_behind_the_first_iteration_it_is_unknown(run) -> None:
    assert run(30.0, total=8) is None
    assert run(30.0, total=1) == 0.0


def test_the_slow_first_iteration_does_not_count(run) -> None:
    assert run(30.0, 31.0, 32.0, total=4) == 1.0


def test_the_iterations_in_which_code_is_compiled_do_not_count_where_there_are_others(run) -> None:
    assert run(30.0, 40.0, 50.0, total=5) == 20.0
    assert run(30.0, 40.0, 50.0, 51.0, total=6, length=10) == 2.0


def test_pauses_between_epochs_count_once_for_each_epoch_that_is_left(run) -> None:
    ends = [1.0, 2.0, 3.0, 4.0, 15.0]  # validation takes 10 s
    assert run(*ends, total=12) == pytest.approx(7 * 1.0 + 2 * 10.0)


def test_a_training_that_ends_within_an_epoch_has_no_further_pause(run) -> None:
    assert run(1.0, 2.0, 3.0, 4.0, 15.0, 16.0, total=6) == 0.0


def test_it_follows_a_phase_in_which_iterations_are_slower(run) -> None:
    fast = [float(n) for n in range(1, 101)]
    slow = [100.0 + 3 * n for n in range(1, RemainingTime.WINDOW + 1)]
    assert run(*fast, *slow, total=160, length=1000) == 30.0


def test_epochs_of_one_iteration_are_estimated_from_their_pauses(run) -> None:
    assert run(5.0, 7.0, 9.0, total=5, length=1) == 4.0
