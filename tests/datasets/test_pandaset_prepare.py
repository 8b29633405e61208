"""`prepare pandaset`: infos, the ground-truth database, and runs that were interrupted."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from pandaset_maker import cuboid_columns, make_pandaset, write

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.pandaset import PandaSetDataset, prepare_pandaset
from pcdet_freeze.datasets.pandaset.tables import read_table
from pcdet_freeze.datasets.reading.timed_reads import ReadTimeoutError, reads_within
from pcdet_freeze.errors import ConfigError, DataError

CLASSES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/pandaset_dataset.yaml")
    data = make_pandaset(tmp_path / "data")
    shipped.update(DATA_PATH=str(data), SWEEPS={"train": ["002"], "test": ["002/01"]},
                   INFO_ROOT=str(tmp_path / "infos"))  # fmt: skip
    return shipped


def read(cfg: EasyDict, name: str) -> Any:
    return pickle.loads((Path(cfg.INFO_ROOT) / name).read_bytes())


def test_infos_hold_openpcdets_keys_and_what_the_labels_say(cfg: EasyDict) -> None:
    report = prepare_pandaset(cfg, CLASSES, workers=2)
    assert report.frames == {"train": 2, "test": 1} and report.skipped == {}
    assert report.points["road"] == 800 and report.points["lane_line"] == 60
    train, test = (read(cfg, f"pandaset_infos_{mode}.pkl") for mode in ("train", "test"))
    assert [info["frame_idx"] for info in train] == [0, 1] and test[0]["frame_idx"] == 1
    assert train[0]["sequence"] == "002" and train[0]["lidar_path"] == "002/lidar/00.pkl.gz"
    assert train[0]["annos"]["name"].tolist() == ["Car", "Pedestrian"] and len(train[0]["lane_lines"]) == 2


def test_gt_sampling_pastes_the_objects_of_the_database(cfg: EasyDict) -> None:
    prepare_pandaset(cfg, CLASSES, workers=1)
    entries = read(cfg, "pandaset_dbinfos_train.pkl")
    assert {name: [e["num_points_in_gt"] for e in found] for name, found in entries.items()} == {
        "Car": [30, 30], "Pedestrian": [10, 10]}  # fmt: skip
    sampler = {"NAME": "gt_sampling", "USE_ROAD_PLANE": False, "DB_INFO_PATH": ["pandaset_dbinfos_train.pkl"],
               "PREPARE": {"filter_by_min_points": ["Car:5"]}, "SAMPLE_GROUPS": ["Pedestrian:3"],
               "NUM_POINT_FEATURES": 4, "REMOVE_EXTRA_WIDTH": [0.0] * 3}  # fmt: skip
    cfg.update(DATA_AUGMENTOR=[sampler], MIN_POINTS=20)  # the pedestrian of the sweep has fewer points
    frames = build_dataset(cfg, CLASSES, True)
    assert frames[0]["gt_boxes"][:, 7].tolist() == [1, 2]  # one is pasted: the next would overlap it


def test_an_interrupted_run_continues_with_the_sweeps_that_are_left(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_now: list[int] = []
    load = PandaSetDataset.load_sample

    def stops(self: PandaSetDataset, index: int) -> Any:
        read_now.append(self.sweeps[index].number)
        if len(read_now) == 2:
            raise KeyboardInterrupt
        return load(self, index)

    monkeypatch.setattr(PandaSetDataset, "load_sample", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_pandaset(cfg, CLASSES, workers=1)
    assert not (Path(cfg.INFO_ROOT) / "pandaset_infos_train.pkl").exists()
    read_now[:] = [9, 9]  # no further interrupt
    prepare_pandaset(cfg, CLASSES, workers=1)
    assert read_now[2:] == [1, 1]  # sweep 00 was finished; 01 is read for train and for test
    assert len(read(cfg, "pandaset_infos_train.pkl")) == 2


def test_a_part_of_another_config_or_with_damage_is_written_anew(cfg: EasyDict) -> None:
    parts = Path(cfg.INFO_ROOT) / ".pandaset_parts"
    parts.mkdir(parents=True)
    (parts / "002_00_train.pkl").write_bytes(b"damaged")
    (parts / "002_01_train.pkl").write_bytes(pickle.dumps({"key": "other", "info": {}, "objects": []}))
    assert prepare_pandaset(cfg, CLASSES).objects == {"Car": 2, "Pedestrian": 2}
    assert not parts.exists()


def test_a_bad_sweep_is_left_out_and_named(cfg: EasyDict) -> None:
    (Path(cfg.DATA_PATH) / "002/lidar/00.pkl.gz").write_bytes(b"damaged")
    report = prepare_pandaset(cfg, CLASSES)
    assert report.frames == {"train": 1, "test": 1} and "gzip" in report.skipped["002_00"]
    (Path(cfg.DATA_PATH) / "002/lidar/01.pkl.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"no usable sweep for train; the first fault: .*gzip"):
        prepare_pandaset(cfg, CLASSES)


@pytest.fixture
def dead(cfg: EasyDict) -> Iterator[Callable[[str], Path]]:
    """Puts a pipe, which stands for a dead disk, in place of a file; at the end its reads return."""
    made: list[Path] = []

    def kill(name: str) -> Path:
        path = Path(cfg.DATA_PATH) / "002" / name
        path.unlink()
        os.mkfifo(path)
        made.append(path)
        return path

    yield kill
    for path in made:
        os.close(os.open(path, os.O_RDWR))


def test_prepare_names_the_file_that_is_not_read(cfg: EasyDict, dead: Callable[[str], Path]) -> None:
    cfg.TIMEOUT = 0.3
    path = dead("lidar/poses.json")
    with pytest.raises(ReadTimeoutError, match=rf"DATA_CONFIG\.TIMEOUT: .*within 0\.3 s.*{path}"):
        prepare_pandaset(cfg, CLASSES, workers=2)
    assert not (Path(cfg.INFO_ROOT) / "pandaset_infos_train.pkl").exists()


def test_a_table_that_is_not_read_is_named(dead: Callable[[str], Path]) -> None:
    path = dead("lidar/00.pkl.gz")
    with reads_within(0.3), pytest.raises(ReadTimeoutError, match=str(path)):
        read_table(path, ("x",))


@pytest.mark.parametrize("look", ["glob", "is_file"])
def test_the_start_names_the_folder_that_does_not_answer(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    cfg.TIMEOUT, answer = 0.3, Event()
    with monkeypatch.context() as patch:
        patch.setattr(Path, look, lambda *_: [path for path in [Path()] if answer.wait(20)])
        with pytest.raises(ReadTimeoutError, match=r"TIMEOUT: .*002"):
            build_dataset(cfg, CLASSES, True)
    answer.set()


def test_sweeps_that_are_a_list_are_a_config_error(cfg: EasyDict) -> None:
    cfg.SWEEPS = ["002"]
    with pytest.raises(ConfigError, match="SWEEPS"):
        prepare_pandaset(cfg, CLASSES)


def test_a_part_is_written_anew_where_the_pose_changed(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pcdet_freeze.datasets.prepare_modes.write_database", stops)
        with pytest.raises(KeyboardInterrupt):
            prepare_pandaset(cfg, CLASSES)
    poses = Path(cfg.DATA_PATH) / "002/lidar/poses.json"
    poses.write_text(poses.read_text().replace("100.0", "101.25"))
    prepare_pandaset(cfg, CLASSES)
    boxes = read(cfg, "pandaset_infos_train.pkl")[0]["annos"]["gt_boxes_lidar"]
    assert boxes[0, 0] == np.float32(11.25)  # forward is the world's -x


def test_a_label_may_be_longer_than_a_file_name(cfg: EasyDict) -> None:
    labels = ["\u8eca" * 99 + end for end in "ab"]  # 300 bytes each
    for number in (0, 1):
        path = Path(cfg.DATA_PATH) / f"002/annotations/cuboids/{number:02d}.pkl.gz"
        columns = cuboid_columns()
        write(path, **{**columns, "label": [*labels, *columns["label"][2:]]})
    report = prepare_pandaset(cfg, CLASSES)
    assert report.objects == dict.fromkeys(labels, 2) and report.skipped == {}
    paths = [e["path"] for name in labels for e in read(cfg, "pandaset_dbinfos_train.pkl")[name]]
    assert len({*paths}) == 4 and all((Path(cfg.INFO_ROOT) / path).is_file() for path in paths)


def test_the_command_writes_to_out(cfg: EasyDict, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(cfg.INFO_ROOT) / "elsewhere"
    file = str(root / "cfgs/dataset_configs/pandaset_dataset.yaml")
    words = [
        "prepare",
        "pandaset",
        "--cfg_file",
        file,
        "--out",
        str(out),
        "--set",
        "DATA_PATH",
        cfg.DATA_PATH,
    ]
    assert main(words) == 0
    assert "sweeps: 2 train, 1 test" in capsys.readouterr().out
    assert np.fromfile(next((out / "gt_database").glob("002_00_Car_0.bin")), "<f4").size == 120


def test_the_command_needs_a_config_of_the_data_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "pandaset", "--cfg_file", str(root / "cfgs/dataset_configs/kitti_dataset.yaml")]
    assert main(words) == 1 and "DATASET: PandaSetDataset" in capsys.readouterr().err
