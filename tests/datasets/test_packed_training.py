"""Data sets on packed lists: their batches, their prepare, and database entries that are broken."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from once_maker import make_once
from waymo_maker import make_waymo

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.kitti import KittiDataset
from pcdet_freeze.datasets.once import prepare_once
from pcdet_freeze.datasets.packed import opening
from pcdet_freeze.datasets.packed.format import PackedFile
from pcdet_freeze.datasets.packed.rows import InMemory
from pcdet_freeze.datasets.waymo import prepare_waymo

pytestmark = pytest.mark.usefixtures("packs")


def test_batches_of_a_packed_training_are_those_of_lists_to_the_bit(
    kitti_cfg: EasyDict,
    kitti: Callable[..., KittiDataset],
    monkeypatch: pytest.MonkeyPatch,
    packs: list[Path],
) -> None:
    made = len(packs)  # by prepare
    packed = kitti()
    assert made > 2 and len(packs) == made and isinstance(packed.infos.store, PackedFile)
    assert packed.data_augmentor is not None
    assert packed.data_augmentor.steps[0].size == 4
    monkeypatch.setattr(opening, "PACK_FROM", 10**9)
    listed = kitti()
    assert isinstance(listed.infos.store, InMemory)
    for epoch in range(3):
        batches = []
        for frames in (packed, listed):
            frames.set_epoch(epoch)
            batches.append(frames.collate_batch([frames[k] for k in range(len(frames))]))
        assert batches[0].keys() == batches[1].keys()
        for key, value in batches[0].items():
            if isinstance(value, np.ndarray):
                assert value.dtype == batches[1][key].dtype
                np.testing.assert_array_equal(value, batches[1][key])
    truths = [pickle.dumps(pickle.loads(pickle.dumps(anno))) for anno in packed.ground_truth_annos()]
    assert truths == [pickle.dumps(pickle.loads(pickle.dumps(anno))) for anno in listed.ground_truth_annos()]


@pytest.mark.parametrize(("name", "make", "prepare", "classes"), [
    ("waymo", make_waymo, prepare_waymo, ["Vehicle", "Pedestrian", "Cyclist"]),
    ("once", make_once, prepare_once, ["Car", "Bus", "Truck", "Pedestrian", "Cyclist"]),
])  # fmt: skip
def test_prepare_packs_the_lists_that_a_training_finds(
    root: Path, tmp_path: Path, packs: list[Path], name: str, make: Any, prepare: Any, classes: list[str]
) -> None:
    cfg = cfg_from_yaml_file(root / f"cfgs/dataset_configs/{name}_dataset.yaml")
    cfg.DATA_PATH = str(make(tmp_path / name))
    prepare(cfg, classes)
    made = len(packs)
    assert made >= 3
    frames = [build_dataset(cfg, classes, training) for training in (True, False)]
    assert len(packs) == made and all(isinstance(data.infos.store, PackedFile) for data in frames)  # type: ignore[attr-defined]


def test_broken_database_entries_are_named_alike_with_and_without_packing(
    kitti_cfg: EasyDict, kitti: Callable[..., KittiDataset], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = Path(kitti_cfg.DATA_PATH) / "kitti_dbinfos_train.pkl"
    database = pickle.loads(path.read_bytes())
    cars = database["Car"]
    database["Car"] = [
        *(cars * 300),
        {"name": "Car"},
        {**cars[0], "difficulty": "easy"},
        {**cars[0], "difficulty": 2**70},
    ]
    path.write_bytes(pickle.dumps(database))
    kitti()
    messages = [record.message for record in caplog.records if "left out" in record.message]
    caplog.clear()
    monkeypatch.setattr(opening, "PACK_FROM", 10**9)
    kitti()
    assert messages == [record.message for record in caplog.records if "left out" in record.message]
    assert len(messages) == 2 and "entry 601 of Car: difficulty is missing" in messages[1]
