"""All ranks stop after the same iteration, however far apart they are; ranks are threads here."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
from torch import distributed as dist

from pcdet_freeze.engine.ranks.stop_agreement import StopAgreement
from pcdet_freeze.errors import TrainingError
from pcdet_freeze.utils.signals.stop_signals import StopSignals

LAST = 20_000  # many times more than a slow machine makes until the ranks agree


class Rank:
    """A main thread that makes iterations, and a thread that polls."""

    def __init__(self, rank: int, size: int, store: dist.Store, step_s: float, meet: Callable[[], object]):
        self.agreement = StopAgreement(rank, size, StopSignals(), gives_up_s=10)
        self.store, self.step_s, self.meet = store, step_s, meet
        self.over = threading.Event()
        self.main, self.poller = threading.Thread(target=self.train), threading.Thread(target=self.poll)
        self.agreement.begin(0)
        self.done = 0
        self.main.start()
        self.poller.start()

    def train(self) -> None:
        while self.done < LAST:
            time.sleep(self.step_s)
            self.meet()
            self.done += 1
            if self.agreement.must_stop(self.done):
                return

    def poll(self) -> None:
        while not self.over.wait(random.Random().uniform(0.001, 0.02)):
            self.agreement.poll(self.store)


def stopped_at(steps: list[float], lockstep: bool, asks: list[int]) -> list[int]:
    """The iterations in which ranks with these step times stop; the ranks ``asks`` receive a signal."""
    store, barrier = dist.HashStore(), threading.Barrier(len(steps))
    meet: Callable[[], object] = (lambda: barrier.wait(10)) if lockstep else (lambda: None)
    ranks = [Rank(number, len(steps), store, step, meet) for number, step in enumerate(steps)]
    time.sleep(0.03)
    for number in asks:
        ranks[number].agreement.signals.request(15)
    for rank in ranks:
        rank.main.join()
    for rank in ranks:
        rank.over.set()
        rank.poller.join()
    return [rank.done for rank in ranks]


@pytest.mark.parametrize("asks", [[0], [2], [0, 1, 2]])
@pytest.mark.parametrize("steps", [[0.001, 0.001, 0.001], [0.001, 0.0, 0.002]])
def test_ranks_in_lockstep_stop_after_the_same_iteration(steps: list[float], asks: list[int]) -> None:
    done = stopped_at(steps, True, asks)
    assert len(set(done)) == 1 and done[0] < LAST


@pytest.mark.parametrize("asks", [[0], [1]])
@pytest.mark.parametrize("steps", [[0.004, 0.001], [0.001, 0.004]])
def test_ranks_that_are_far_apart_stop_after_the_same_iteration(steps: list[float], asks: list[int]) -> None:
    """Without an all-reduce in each step, as with gradient accumulation, one may be ahead by many."""
    done = stopped_at(steps, False, asks)
    assert len(set(done)) == 1 and done[0] < LAST


def test_a_rank_that_is_past_the_proposal_gets_another() -> None:
    store = dist.HashStore()
    slow, fast = (StopAgreement(rank, 2, StopSignals(), 0.05) for rank in range(2))
    for agreement in (slow, fast):
        agreement.begin(0)
    fast.must_stop(90)
    fast.signals.request(15)
    for _ in range(6):
        for agreement in (fast, slow):
            agreement.poll(store)
    assert store.get("stop0/1/verdict") == b"again" and store.get("stop0/2/verdict") == b"stop"
    at = int(store.get("stop0/2/at"))
    assert at > 90 and [agreement.must_stop(at - 1) for agreement in (slow, fast)] == [False, False]
    assert [agreement.must_stop(at) for agreement in (slow, fast)] == [True, True]


def test_a_rank_that_does_not_answer_is_an_error_and_not_a_hang() -> None:
    store = dist.HashStore()
    agreement = StopAgreement(0, 2, StopSignals(), gives_up_s=0.05)
    agreement.begin(0)
    agreement.signals.request(15)
    agreement.poll(store)
    with pytest.raises(TrainingError, match=r"did not answer within 0\.05 s"):
        agreement.must_stop(int(store.get("stop0/1/at")))


def test_without_a_signal_nothing_is_proposed() -> None:
    store = dist.HashStore()
    agreement = StopAgreement(0, 1, StopSignals())
    assert not agreement.poll(store) and not store.check(["stop0/1/at"])


def run_to_stop(agreements: list[StopAgreement], store: dist.Store, start: int) -> int:
    """The iteration in which all ranks stop after a signal in ``start``."""
    for agreement in agreements:
        agreement.begin(start)
    agreements[1].signals.request(15)
    for _ in range(4):
        for agreement in agreements:
            agreement.poll(store)
    stops = [next(n for n in range(start + 1, start + 50) if one.must_stop(n)) for one in agreements]
    for agreement in agreements:
        agreement.signals.received = None
        agreement.end()
    assert len(set(stops)) == 1
    return stops[0]


def test_a_second_run_after_a_stop_goes_on_and_can_be_stopped_again() -> None:
    store = dist.HashStore()
    agreements = [StopAgreement(rank, 2, StopSignals(), 0.05) for rank in range(2)]
    at = run_to_stop(agreements, store, 1000)
    for agreement in agreements:
        agreement.begin(at)
    for n in range(at + 1, at + 9):
        assert not any([agreement.poll(store) or agreement.must_stop(n) for agreement in agreements])
    for agreement in agreements:
        agreement.end()
    assert run_to_stop(agreements, store, at + 9) > at + 9


def test_an_epoch_that_begins_keeps_what_was_agreed_on() -> None:
    store = dist.HashStore()
    agreements = [StopAgreement(rank, 2, StopSignals(), 0.05) for rank in range(2)]
    for agreement in agreements:
        agreement.begin(4)
    agreements[0].signals.request(15)
    for _ in range(4):
        for agreement in agreements:
            agreement.poll(store)
    for agreement in agreements:
        agreement.begin(5)
    assert all(any(agreement.must_stop(n) for n in range(6, 30)) for agreement in agreements)
