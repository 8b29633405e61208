"""Waiting for threads that load batches ahead."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import DataLoader, Dataset

from pcdet_freeze.utils.loader_threads import draws_from_own_generators, wait_for_loader_threads


class Counted(Dataset):  # type: ignore[type-arg]
    """Counts its samples."""

    def __init__(self, length: int = 100) -> None:
        self.length, self.loaded = length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        self.loaded += 1
        return index


@contextmanager
def prefetching(dataset: Counted, ahead: int) -> Iterator[queue.Queue[object]]:
    """A thread that puts batches into a queue with room for ``ahead`` of them."""
    batches: queue.Queue[object] = queue.Queue(ahead)
    stop = threading.Event()

    def load() -> None:
        for batch in DataLoader(dataset, 1):
            if stop.is_set():
                return
            batches.put(batch)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        yield batches
    finally:
        stop.set()
        while thread.is_alive():
            try:
                batches.get(timeout=0.01)
            except queue.Empty:
                continue


def test_a_thread_that_fills_its_queue_is_waited_for() -> None:
    dataset = Counted()
    with prefetching(dataset, ahead=2):
        assert wait_for_loader_threads()
        assert dataset.loaded == 3  # two in the queue, one that waits for room


def test_a_thread_that_was_woken_by_an_emptied_queue_is_waited_for() -> None:
    dataset = Counted()
    with prefetching(dataset, ahead=1) as batches:
        assert wait_for_loader_threads()
        batches.get()
        assert wait_for_loader_threads()
        assert dataset.loaded == 3


def test_a_thread_that_never_stops_loading_is_waited_for_until_the_timeout() -> None:
    with prefetching(Counted(), ahead=1000):
        assert not wait_for_loader_threads(timeout=0.1)


def test_threads_without_a_loader_are_not_waited_for() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [time.sleep(0.001) for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        assert wait_for_loader_threads(timeout=0.0)
    finally:
        stop.set()
        thread.join()


class Stuck(Dataset):  # type: ignore[type-arg]
    """A read that does not return until ``released`` is set."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        self.begun.set()
        self.released.wait()
        return index


def test_a_thread_with_generators_of_its_own_is_not_waited_for() -> None:
    dataset = Stuck()
    thread = threading.Thread(target=lambda: list(DataLoader(dataset, 1)), daemon=True)
    draws_from_own_generators(thread).start()
    dataset.begun.wait()
    assert wait_for_loader_threads(timeout=0.0)
    dataset.released.set()
    thread.join()


def test_a_marked_thread_that_has_ended_gives_its_mark_to_no_thread_with_the_same_number() -> None:
    ended = draws_from_own_generators(threading.Thread(target=lambda: None))
    ended.start()
    ended.join()
    stuck = Stuck()
    thread = threading.Thread(target=lambda: list(DataLoader(stuck, 1)), daemon=True)
    thread.start()
    stuck.begun.wait()
    ended._ident = thread.ident  # type: ignore[attr-defined]  # the system gives numbers again
    assert not wait_for_loader_threads(timeout=0.05)
    stuck.released.set()
    thread.join()
