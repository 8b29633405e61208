"""The order of frames; workers and resuming do not change the data."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from easydict import EasyDict

from pcdet_freeze.datasets import EpochSampler, build_dataloader, build_dataset
from pcdet_freeze.datasets.kitti import KittiDataset
from pcdet_freeze.errors import ConfigError

CLASSES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def sampler(toy: Callable) -> Callable[..., EpochSampler]:
    return lambda batch_size=2, shuffle=True, **options: EpochSampler(
        toy(), batch_size, shuffle=shuffle, **options
    )


def test_the_order_is_a_pure_function_of_seed_and_epoch(sampler: Callable[..., EpochSampler]) -> None:
    one, two, other = sampler(seed=1), sampler(seed=1), sampler(seed=2)
    one.set_epoch(3)
    one.set_epoch(0)
    assert list(one) == list(two)
    assert sorted(one) == list(range(10))
    assert list(one) != list(other)
    two.set_epoch(1)
    assert list(one) != list(two)


def test_a_start_skips_the_batches_already_seen(sampler: Callable[..., EpochSampler]) -> None:
    whole, rest = sampler(), sampler()
    rest.set_epoch(0, start_iter=3)
    assert list(rest) == list(whole)[6:]
    assert len(rest) == 10
    rest.set_epoch(0)
    assert list(rest) == list(whole)


def test_the_data_set_learns_the_epoch(sampler: Callable[..., EpochSampler]) -> None:
    one = sampler()
    one.set_epoch(5)
    assert one.dataset.epoch == 5


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_frames_and_make_equally_many_steps(
    sampler: Callable[..., EpochSampler], shuffle: bool
) -> None:
    shares = [list(sampler(shuffle=shuffle, rank=rank, world_size=3)) for rank in range(3)]
    interleaved = [index for step in zip(*shares, strict=True) for index in step]
    assert interleaved[:10] == list(sampler(shuffle=shuffle))
    assert [len(share) for share in shares] == [4, 4, 4]


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_without_padding_each_frame_is_used_once(sampler: Callable[..., EpochSampler], world: int) -> None:
    ranks = [sampler(shuffle=False, fill=False, rank=rank, world_size=world) for rank in range(world)]
    assert sorted(index for rank in ranks for index in rank) == list(range(10))
    assert [len(rank) for rank in ranks] == [len(list(rank)) for rank in ranks]


def test_a_rank_outside_the_world_is_an_error(sampler: Callable[..., EpochSampler]) -> None:
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        sampler(rank=2, world_size=2)


def batches(cfg: EasyDict, workers: int, start_iter: int = 0) -> Iterator[dict]:
    _, loader, sampler = build_dataloader(cfg, CLASSES, 1, training=True, workers=workers, seed=5)
    sampler.set_epoch(2, start_iter)
    return iter(loader)


def test_workers_do_not_change_the_data(kitti_cfg: EasyDict) -> None:
    for alone, helped in zip(batches(kitti_cfg, 0), batches(kitti_cfg, 2), strict=True):
        assert alone.keys() == helped.keys()
        for key in ("points", "voxels", "voxel_coords", "gt_boxes", "frame_id"):
            np.testing.assert_array_equal(alone[key], helped[key])


def test_a_resumed_epoch_continues_with_the_same_data(kitti_cfg: EasyDict) -> None:
    whole, rest = list(batches(kitti_cfg, 0)), list(batches(kitti_cfg, 0, start_iter=1))
    assert len(rest) == len(whole) - 1
    for before, after in zip(whole[1:], rest, strict=True):
        np.testing.assert_array_equal(before["points"], after["points"])


def test_the_data_set_is_found_by_name(kitti_cfg: EasyDict) -> None:
    dataset = build_dataset(kitti_cfg, CLASSES, training=False)
    assert isinstance(dataset, KittiDataset)


def test_an_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="DATASET must be one of"):
        build_dataset({"DATASET": "KittiDatset"}, CLASSES, training=True)


def test_a_data_set_of_openpcdet_that_is_not_implemented_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"LyftDataset.*not implemented.*KittiDataset.*pcdet_freeze\.openpcdet"
    ):
        build_dataset({"DATASET": "LyftDataset"}, CLASSES, training=True)


def test_workers_leave_a_ctrl_c_to_the_main_process(kitti_cfg: EasyDict) -> None:
    dataset, loader, _ = build_dataloader(kitti_cfg, CLASSES, 1, training=True, workers=1)
    load = dataset.load_sample

    def interrupted(index: int) -> dict:
        os.kill(os.getpid(), signal.SIGINT)
        return load(index)

    dataset.load_sample = interrupted
    assert len(list(loader)) == len(loader)
