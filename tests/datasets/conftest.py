"""Fixtures of the data set tests: a tiny, prepared KITTI; packing of short lists in this process."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from easydict import EasyDict
from kitti_maker import make_kitti
from toy_dataset import ToyDataset

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets.kitti import KittiDataset, prepare_kitti
from pcdet_freeze.datasets.packed import Kind, opening
from pcdet_freeze.datasets.packed.packing import pack
from pcdet_freeze.errors import DataError

CLASSES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def pillar_cfg(root: Path) -> EasyDict:
    """The data config of cfgs/kitti_models/pointpillar.yaml."""
    return cfg_from_yaml_file(root / "cfgs/kitti_models/pointpillar.yaml").DATA_CONFIG


@pytest.fixture
def raw_kitti(tmp_path: Path, pillar_cfg: EasyDict) -> EasyDict:
    """Config of a tiny KITTI that has not been prepared."""
    pillar_cfg.DATA_PATH = str(make_kitti(tmp_path / "kitti"))
    return pillar_cfg


@pytest.fixture
def kitti_cfg(raw_kitti: EasyDict) -> EasyDict:
    """Config of a tiny KITTI with its info files."""
    prepare_kitti(raw_kitti, CLASSES, workers=1)
    return raw_kitti


@pytest.fixture
def kitti(kitti_cfg: EasyDict) -> Callable[..., KittiDataset]:
    """kitti(training=True) -> the tiny KITTI."""
    return lambda training=True, **options: KittiDataset(kitti_cfg, CLASSES, training, **options)


@pytest.fixture
def toy_cfg() -> EasyDict:
    """Config of ToyDataset: shuffle and random flip in training."""
    return EasyDict({
        "POINT_CLOUD_RANGE": [0, -20, -3, 20, 20, 1],
        "DATA_AUGMENTOR": [{"NAME": "random_world_flip", "ALONG_AXIS_LIST": ["x"]}],
        "POINT_FEATURE_ENCODING": {
            "used_feature_list": ["x", "y", "z", "intensity"],
            "src_feature_list": ["x", "y", "z", "intensity"]},
        "DATA_PROCESSOR": [
            {"NAME": "mask_points_and_boxes_outside_range", "REMOVE_OUTSIDE_BOXES": True},
            {"NAME": "shuffle_points", "SHUFFLE_ENABLED": {"train": True, "test": False}}],
    })  # fmt: skip


@pytest.fixture
def toy(toy_cfg: EasyDict) -> Callable[..., ToyDataset]:
    """toy(bad=(), empty=(), training=True) -> a ToyDataset for the class Car."""

    def build(bad: tuple[int, ...] = (), empty: tuple[int, ...] = (), training: bool = True) -> ToyDataset:
        dataset = ToyDataset(toy_cfg, ["Car"], training)
        dataset.bad, dataset.empty = bad, empty
        return dataset

    return build


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Lists of any length are packed, in this process; what is packed."""
    made: list[Path] = []

    def here(kind: Kind, paths: list[Path], place: Path, log: logging.Logger) -> None:
        made.append(place)
        try:
            pack(kind, paths, place)
        except DataError as error:
            raise OSError(str(error)) from error

    monkeypatch.setattr(opening, "PACK_FROM", 0)
    monkeypatch.setattr(opening, "_run_child", here)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return made
