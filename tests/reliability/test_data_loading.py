"""Reads that do not return and workers that are killed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import select
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kitti_maker import make_kitti
from real_ranks import until
from torch.utils.data._utils import signal_handling
from toy_dataset import ToyDataset

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import EpochSampler, build_dataloader
from pcdet_freeze.datasets.kitti import prepare_kitti
from pcdet_freeze.datasets.loader import each_batch, shut_down_workers
from pcdet_freeze.datasets.reading import frame_loader
from pcdet_freeze.datasets.reading.frame_loader import Board, FrameLoader
from pcdet_freeze.errors import DataError

XYZI = ["x", "y", "z", "intensity"]
CFG = {
    "POINT_CLOUD_RANGE": [0, -20, -3, 20, 20, 1],
    "POINT_FEATURE_ENCODING": {"used_feature_list": XYZI, "src_feature_list": XYZI},
    "DATA_AUGMENTOR": [{"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["x"]}],
    "DATA_PROCESSOR": [{"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}}],
    "TIMEOUT": 5,
}


class Faulty(ToyDataset):
    """Frame ``hangs`` is never read; frame ``kills`` kills the process that reads it, ``times`` times."""

    hangs, kills, times = -1, -1, 1
    folder = Path()

    def load_sample(self, index: int) -> dict[str, Any]:
        if index == self.hangs:
            time.sleep(60)
        if index == self.kills and len(list(self.folder.iterdir())) < self.times:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load_sample(index)


def loader_of(workers: int, timeout: float | None = 5, **changes: Any) -> FrameLoader:
    dataset = Faulty({**CFG, "TIMEOUT": timeout}, ["Car"], training=True)
    vars(dataset).update(changes)
    sampler = EpochSampler(dataset, 2, shuffle=True, seed=1)
    return FrameLoader(
        dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=dataset.collate_batch
    )


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            np.testing.assert_array_equal(one[key], value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_never_returns_names_the_frame(workers: int) -> None:
    loader = loader_of(workers, timeout=1, hangs=3)  # other frames must not take so long on a loaded machine
    batches, begin = iter(loader), time.monotonic()
    with pytest.raises(DataError, match=r"DATA_CONFIG\.TIMEOUT: .* within 1 s.*still being read: 3\."):
        list(batches)
    shut_down_workers(loader, batches)
    assert time.monotonic() - begin < 20  # and not a minute


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pipe_in_place_of_a_point_file_names_its_frame(tmp_path: Path, root: Path, workers: int) -> None:
    cfg = cfg_from_yaml_file(root / "cfgs/kitti_models/pointpillar.yaml").DATA_CONFIG
    cfg.update(DATA_PATH=str(make_kitti(tmp_path / "kitti")), TIMEOUT=1)
    prepare_kitti(cfg, ["Car"], workers=1)
    path = tmp_path / "kitti/training/velodyne/000001.bin"
    path.unlink()
    os.mkfifo(path)
    _, loader, _ = build_dataloader(cfg, ["Car"], 1, training=False, workers=workers)
    batches = iter(loader)
    with pytest.raises(DataError, match="still being read: 000001"):
        list(batches)
    shut_down_workers(loader, batches)
    os.close(os.open(path, os.O_RDWR))  # the read ends, and with it its thread


def test_the_first_frame_of_a_process_may_take_three_times_the_limit() -> None:
    board = Board(1, limit=10.0)
    write, now = board.writer(0), time.monotonic()
    write(4)
    assert board.current(0)[0] == 4 and board.current(0)[1] >= now + 20
    write(5)
    assert board.current(0)[1] < now + 20


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_loader_without_a_limit(workers: int) -> None:
    plain = loader_of(0)
    plain.limit = 0.0
    assert_same(list(loader_of(workers)), list(plain))


def test_time_in_which_a_job_was_suspended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(frame_loader, "time", SimpleNamespace(monotonic=lambda: clock.now))
    loader = loader_of(1)
    loader.board.writer(0)(3)

    def late_after(seconds: float) -> list[int]:
        clock.now += seconds
        return loader.overdue()

    assert [late_after(1), late_after(3600), late_after(4)] == [[], [], []]  # suspended in a wait
    clock.now += 3600  # suspended during a step
    loader.begin_to_wait()
    assert [late_after(1), late_after(3)] == [[], []]
    assert late_after(2) == [0]  # a read that hangs is still found


@pytest.mark.parametrize("workers", [0, 1])
def test_the_time_of_a_frame_counts_while_its_batch_is_awaited(workers: int) -> None:
    loader = loader_of(workers)
    batches = iter(loader)
    begin = time.monotonic()
    next(batches)
    shut_down_workers(loader, batches)
    assert loader.counted_from >= begin


def test_frames_that_take_long_together_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, load, late = SimpleNamespace(now=1000.0), Faulty.load_sample, []
    monkeypatch.setattr(frame_loader, "time", SimpleNamespace(monotonic=lambda: clock.now))
    loader = loader_of(0, timeout=5)

    def slow(self: Faulty, index: int) -> dict[str, Any]:
        clock.now += 4  # two frames of 4 s make a batch
        late.append(loader.overdue())
        return load(self, index)

    monkeypatch.setattr(Faulty, "load_sample", slow)
    assert len(list(loader)) == 5 and late == [[]] * 10


def test_a_killed_worker_is_named_and_the_epoch_is_that_of_an_unbroken_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    iter(loader_of(2))  # draws what the start of an epoch draws
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    found = list(each_batch(loader_of(2, kills=3, folder=tmp_path)))
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(found, list(loader_of(0)))
    assert len(list(tmp_path.iterdir())) == 1
    assert "signal 9 SIGKILL" in caplog.text and "while it read" in caplog.text


def test_a_worker_that_is_killed_again_ends_the_run(tmp_path: Path) -> None:
    loader = loader_of(2, kills=3, times=99, folder=tmp_path)
    with pytest.raises(
        DataError, match=r"data worker ended: process \d+ \(killed by signal 9.*not the first"
    ):
        list(each_batch(loader))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_epoch_that_was_resumed_goes_on_after_a_killed_worker(tmp_path: Path) -> None:
    whole = list(loader_of(0))
    loader = loader_of(1, kills=int(whole[3]["frame_id"][0]), folder=tmp_path)
    loader.sampler.set_epoch(0, start_iter=2)
    assert_same(list(loader), whole[2:])
    assert loader.sampler.start == 4


def test_the_frame_of_a_killed_worker_is_not_that_of_its_successor() -> None:
    loader = loader_of(1)
    batches = iter(loader)
    shut_down_workers(loader, batches)
    loader.board.rows[0] = torch.tensor([3.0, 0.0])
    batches._batches = batches._started()
    assert loader.board.current(0) != (3, 0.0)
    shut_down_workers(loader, batches)


def test_a_child_that_ends_does_not_interrupt_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # as in a process without loaders
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    loader = loader_of(1)
    batches = iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    shut_down_workers(loader, batches)
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    assert handler == signal.SIG_DFL


def test_the_reading_thread_ends_with_its_iterator() -> None:
    before = threading.active_count()
    for _ in range(3):
        next(iter(loader_of(0)))
    until(lambda: threading.active_count() <= before)
    assert threading.active_count() <= before


def wait_with_a_large_batch(started: int) -> None:
    """A main process whose worker writes a batch that is larger than a pipe; it does not read the batch."""

    def large(samples: object) -> bytes:
        os.write(started, b"%d " % os.getpid())
        return bytes(2**24)

    dataset = ToyDataset(CFG, ["Car"], training=True)
    batches = iter(FrameLoader(dataset, batch_size=2, num_workers=1, prefetch_factor=1, collate_fn=large))
    time.sleep(60)
    del batches


def test_a_worker_that_writes_a_batch_ends_with_a_killed_main_process() -> None:
    reader, writer = os.pipe()  # it is at its end when no process holds the writer
    main = multiprocessing.get_context("fork").Process(target=wait_with_a_large_batch, args=(writer,))
    main.start()
    os.close(writer)
    worker = int(os.read(reader, 100))
    main.kill()
    main.join()
    try:
        ended = bool(select.select([reader], [], [], 60)[0]) and os.read(reader, 100) == b""
        assert ended
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_without_a_limit_no_thread_reads() -> None:
    assert loader_of(0, timeout=None).limit == 0
    assert type(iter(loader_of(0, timeout=None))).__module__.startswith("torch")


def test_user_errors_in_a_worker_are_not_taken_for_a_dead_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Faulty, index: int) -> dict[str, Any]:
        raise RuntimeError("of the data set itself")

    monkeypatch.setattr(Faulty, "load_sample", broken)
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match="of the data set itself") as caught:
        list(each_batch(loader_of(1)))
    assert caught.value.__traceback__ is not None  # which refers to the iterator, but not to a worker
    assert set(multiprocessing.active_children()) <= before


def test_nothing_is_logged_in_an_epoch_without_faults(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        list(loader_of(1))
    assert caplog.text == ""
