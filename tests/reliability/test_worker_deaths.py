"""Data workers that are killed, whatever else in the process handles SIGCHLD."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from toy_dataset import ToyDataset

from pcdet_freeze.datasets import EpochSampler
from pcdet_freeze.datasets.reading.frame_loader import FrameLoader, WorkerBatches
from pcdet_freeze.datasets.reading.worker_deaths import kill_workers

XYZI = ["x", "y", "z", "intensity"]
CFG = {
    "POINT_CLOUD_RANGE": [0, -20, -3, 20, 20, 1],
    "POINT_FEATURE_ENCODING": {"used_feature_list": XYZI, "src_feature_list": XYZI},
    "TIMEOUT": 20,
}
LARGE = 2**22
"""bytes of a batch: more than a pipe holds"""


def large(samples: list[dict[str, Any]]) -> tuple[list[int], bytes]:
    return [int(sample["frame_id"]) for sample in samples], bytes(LARGE)


def loader_of_large_batches(workers: int = 2) -> FrameLoader:
    dataset = ToyDataset(CFG, ["Car"], training=True)
    sampler = EpochSampler(dataset, 2, shuffle=True, seed=1)
    options: dict[str, Any] = {"num_workers": workers, "prefetch_factor": 1, "collate_fn": large}
    return FrameLoader(dataset, batch_size=2, sampler=sampler, **options)


@pytest.fixture
def batches() -> Iterator[WorkerBatches]:
    """Two workers, each of which writes a batch that nobody reads yet."""
    found = iter(loader_of_large_batches())
    assert isinstance(found, WorkerBatches)
    reader = found._batches._worker_result_queue._reader
    while not reader.poll(0.01):
        pass
    yield found
    kill_workers(found._batches)


@pytest.fixture
def torch_raises() -> Iterator[None]:
    """torch's own handler of SIGCHLD, as another DataLoader leaves it behind."""
    before = signal.getsignal(signal.SIGCHLD)
    signal_handling._SIGCHLD_handler_set = False
    list(DataLoader(torch.arange(2), num_workers=1))  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGCHLD) not in (before, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def frames_of(batches: WorkerBatches) -> list[int]:
    return [frame for frames, _ in batches for frame in frames]


def pids(batches: WorkerBatches) -> list[int]:
    return [worker.pid for worker in batches._batches._workers]


@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_killed_in_the_middle_of_a_write_costs_no_batch(batches: WorkerBatches, worker: int) -> None:
    os.kill(pids(batches)[worker], signal.SIGKILL)
    assert frames_of(batches) == list(batches.loader.sampler)


def test_a_worker_killed_while_its_batch_is_read_costs_no_batch(batches: WorkerBatches) -> None:
    for pid in pids(batches):
        os.kill(pid, signal.SIGSTOP)  # the batch that the main process begins to read does not end
    killer = threading.Timer(0.3, os.kill, (pids(batches)[0], signal.SIGKILL))
    killer.start()
    assert frames_of(batches) == list(batches.loader.sampler)
    killer.join()


def test_a_killed_worker_does_not_interrupt_a_step(torch_raises: None, batches: WorkerBatches) -> None:
    next(batches)
    os.kill(pids(batches)[0], signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pids(batches)[0], os.WEXITED | os.WNOWAIT)
    batches.deaths.join(20)  # Python has run its handlers of the signal by now
    assert batches._batches._workers[0].exitcode == -signal.SIGKILL


def test_workers_that_are_ended_on_purpose_raise_nothing(torch_raises: None, batches: WorkerBatches) -> None:
    next(batches)
    kill_workers(batches._batches)
    batches.deaths.join(20)
    assert [worker.exitcode for worker in batches._batches._workers] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_killed_worker_costs_no_batch_outside_the_main_thread(batches: WorkerBatches, pause: float) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(frames_of(batches)))
    killed = pids(batches)[0]
    os.kill(killed, signal.SIGSTOP)
    thread.start()
    time.sleep(pause)
    os.kill(killed, signal.SIGKILL)
    thread.join(60)
    assert found == list(batches.loader.sampler)


def test_the_thread_that_finds_deaths_ends_with_the_epoch(batches: WorkerBatches) -> None:
    frames_of(batches)
    batches.deaths.join(20)
    assert not batches.deaths.is_alive() and batches.deaths.died == []


def test_a_dropped_iterator_ends_its_workers() -> None:
    loader = loader_of_large_batches()
    batches = iter(loader)
    workers, deaths = batches._batches._workers, batches.deaths
    del batches
    deaths.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_worker_killed_between_reads_costs_no_batch() -> None:
    """Its pipes are closed before it has ended: what the read raises then is of many kinds."""
    for pause in np.linspace(0.0, 0.01, 12):
        batches = iter(loader_of_large_batches(workers=1))
        found = [next(batches)[0]]
        threading.Timer(float(pause), os.kill, (pids(batches)[0], signal.SIGKILL)).start()
        found += [frames for frames, _ in batches]
        assert [frame for frames in found for frame in frames] == list(batches.loader.sampler)
