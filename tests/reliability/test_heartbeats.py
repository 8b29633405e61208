"""A rank that is stopped, gone or stuck is named; the clock is the test's."""

from __future__ import annotations

from torch import distributed as dist

from pcdet_freeze.engine.ranks.heartbeats import Heartbeats, main_thread_place


class Ranks:
    """Heartbeats of some ranks on one clock; those in ``mute`` do not poll."""

    def __init__(self, size: int = 3, timeout: float = 60) -> None:
        self.now, self.store, self.mute = 0.0, dist.HashStore(), set[int]()
        self.iterations: list[int | None] = [0] * size
        self.beats = [
            Heartbeats(rank, size, timeout, lambda rank=rank: self.iterations[rank], lambda: self.now)
            for rank in range(size)
        ]

    def run(self, seconds: float, step: float = 1.0) -> str | None:
        """The first message of rank 0 within this time."""
        until = self.now + seconds
        while self.now < until:
            self.now += step
            said = [beats.poll(self.store) for beats in reversed(self.beats) if beats.rank not in self.mute]
            if said[-1] is not None:
                return said[-1]
        return None


def trains(ranks: Ranks, seconds: int) -> str | None:
    for _ in range(seconds):
        ranks.iterations = [None if n is None else n + 1 for n in ranks.iterations]
        if (said := ranks.run(1)) is not None:
            return said
    return None


def test_ranks_that_answer_are_never_reported() -> None:
    assert trains(Ranks(), 500) is None


def test_a_rank_without_a_beat_is_named_after_the_timeout() -> None:
    ranks = Ranks()
    assert trains(ranks, 100) is None
    ranks.mute = {2}
    assert trains(ranks, 59) is None
    said = trains(ranks, 3)
    assert said is not None and "rank 2" in said and "rank 1" not in said and "--timeout (60 s)" in said


def test_a_rank_that_never_wrote_a_beat_is_named() -> None:
    ranks = Ranks()
    ranks.mute = {1}
    assert "rank 1" in str(ranks.run(70))


def test_an_iteration_that_does_not_end_is_reported_with_its_place() -> None:
    ranks = Ranks()
    assert trains(ranks, 10) is None
    said = ranks.run(70)
    assert said is not None and "An iteration must not take longer" in said and "heartbeats.py, line" in said


def test_outside_of_the_training_loop_nothing_is_stuck() -> None:
    """An evaluation may take hours."""
    ranks = Ranks()
    ranks.iterations = [None] * 3
    assert ranks.run(500) is None


def test_a_process_that_was_stopped_itself_does_not_blame_the_others() -> None:
    """As after `scontrol suspend`, or Ctrl-Z and fg, of the whole job."""
    ranks = Ranks()
    assert trains(ranks, 10) is None
    ranks.now += 1000
    assert trains(ranks, 50) is None


def test_the_place_of_the_main_thread_is_file_line_and_function() -> None:
    assert main_thread_place().startswith("heartbeats.py, line ")
