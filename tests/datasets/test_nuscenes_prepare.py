"""`prepare nuscenes`: infos in OpenPCDet's format, the database, splits, interrupted runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict

pytest.importorskip("nuscenes", reason="the nuscenes-devkit is the extra nuscenes")

from nuscenes_maker import OBJECTS, VERSION, make_nuscenes

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets.nuscenes import NuScenesDataset, prepare, prepare_nuscenes
from pcdet_freeze.datasets.nuscenes.classes import DETECTION_CLASSES
from pcdet_freeze.errors import DataError

CLASSES = list(DETECTION_CLASSES)
TRAIN, VAL = "nuscenes_infos_10sweeps_train.pkl", "nuscenes_infos_10sweeps_val.pkl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nuscenes(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture
def cfg(root: Path, made: Path, tmp_path: Path) -> EasyDict:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/nuscenes_dataset.yaml")
    shipped.update(DATA_PATH=str(made), VERSION=VERSION, INFO_ROOT=str(tmp_path))
    return shipped


def read(cfg: EasyDict, name: str) -> Any:
    return pickle.loads((Path(cfg.INFO_ROOT) / name).read_bytes())


def test_infos_have_openpcdets_keys_and_values(cfg: EasyDict) -> None:
    report = prepare_nuscenes(cfg, CLASSES, workers=2)
    assert report.frames == {"train": 14, "test": 26} and report.skipped == {}
    info = read(cfg, VAL)[4]
    assert info["gt_boxes"].shape == (15, 9) and info["gt_names"][:2].tolist() == ["car", "car"]
    assert info["num_lidar_pts"].tolist() == [o.points for o in OBJECTS if o.points + o.radar_points]
    assert len(info["sweeps"]) == 9 and [round(s["time_lag"], 3) for s in info["sweeps"][:2]] == [0.125, 0.25]
    assert info["sweeps"][3]["lidar_path"].startswith("samples/") and info["scene"] == "scene-0103"
    assert np.isnan(info["gt_boxes_velocity"][12]).all()  # annotated once
    first = read(cfg, VAL)[0]["sweeps"]
    assert {(s["lidar_path"], s["time_lag"]) for s in first} == {(read(cfg, VAL)[0]["lidar_path"], 0.0)}
    assert all(s["transform_matrix"] is None for s in first)


def test_the_database_holds_the_points_of_all_sweeps(cfg: EasyDict) -> None:
    report = prepare_nuscenes(cfg, CLASSES, workers=2)
    assert {name: report.objects[name] for name in ("bus", "traffic_cone", "car")} == {
        "bus": 14, "traffic_cone": 15, "car": 42}  # fmt: skip
    entries = read(cfg, "nuscenes_dbinfos_10sweeps_withvelo.pkl")
    last = entries["bus"][-1]
    cloud = np.fromfile(Path(cfg.INFO_ROOT) / last["path"], "<f4").reshape(-1, 5)
    assert len(cloud) == last["num_points_in_gt"] == 160 and last["box3d_lidar"].shape == (9,)
    assert (np.abs(cloud[:, :3]).max(axis=0) < 4.1).all() and len(np.unique(cloud[:, 4])) == 10
    assert "ignore" not in entries


def test_an_interrupted_run_continues_with_the_frames_that_are_left(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    make = prepare.sample_info

    def stops(tables: Any, sample: Any, sweeps: int) -> Any:
        done.append(sample["token"])
        if len(done) == 30:
            raise KeyboardInterrupt
        return make(tables, sample, sweeps)

    monkeypatch.setattr(prepare, "sample_info", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_nuscenes(cfg, CLASSES, workers=1)
    assert len(read(cfg, TRAIN)) == 14 and not (Path(cfg.INFO_ROOT) / VAL).exists()
    prepare_nuscenes(cfg, CLASSES, workers=1)
    assert len(done) == 30 + 11 and len(read(cfg, VAL)) == 26  # 29 frames were finished
    assert not (Path(cfg.INFO_ROOT) / ".nuscenes_parts").exists()


def test_large_lists_are_packed(cfg: EasyDict, packs: list[Path]) -> None:
    cfg.MAX_SWEEPS = 1
    prepare_nuscenes(cfg, CLASSES, workers=1)
    assert [path.stem for path in packs] == [TRAIN[:-4], VAL[:-4], "nuscenes_dbinfos_1sweeps_withvelo"]


def test_a_part_depends_on_the_files_of_older_sweeps(cfg: EasyDict, tmp_path: Path) -> None:
    data = make_nuscenes(tmp_path / "data")
    cfg.DATA_PATH = str(data)
    (job, other) = (prepare._Job(NuScenesDataset.read_settings(cfg), cfg) for _ in range(2))
    (key, again) = (found._frames("train", found.samples["train"], tmp_path).key for found in (job, other))
    before = [key(k) for k in range(14)]
    assert [again(k) for k in range(14)] == before
    for sweep in (data / "sweeps/LIDAR_TOP").iterdir():
        sweep.write_bytes(sweep.read_bytes()[:-20])
    assert sum(key(k) == before[k] for k in range(14)) <= 1  # the first frame of a scene has no older sweep


def test_a_bad_frame_is_left_out_and_named(cfg: EasyDict, tmp_path: Path) -> None:
    data = make_nuscenes(tmp_path / "data")
    cfg.DATA_PATH = str(data)
    sweep = sorted((data / "samples/LIDAR_TOP").iterdir())[-1]
    sweep.write_bytes(sweep.read_bytes()[:-3])
    report = prepare_nuscenes(cfg, CLASSES, workers=1)
    assert sum(report.frames.values()) == 39 and "truncated" in next(iter(report.skipped.values()))


def test_splits_of_ones_own_are_read_beside_the_tables(cfg: EasyDict, made: Path) -> None:
    path = made / VERSION / "splits.json"
    cfg.DATA_SPLIT = {"train": "mine", "test": "val"}
    with pytest.raises(DataError, match=r"DATA_SPLIT must name a split.*got 'mine'"):
        prepare_nuscenes(cfg, CLASSES)
    try:
        path.write_text(json.dumps({"mine": ["scene-0916"]}))
        assert prepare_nuscenes(cfg, CLASSES).frames == {"train": 13, "test": 26}
        path.write_text("[]")
        with pytest.raises(DataError, match=r"splits.json: not a file of splits"):
            prepare_nuscenes(cfg, CLASSES)
    finally:
        path.unlink()


@pytest.fixture
def with_table(cfg: EasyDict, made: Path, tmp_path: Path) -> Callable[[str, str | None], EasyDict]:
    """with_table(name, content) -> a config of the same set with another table; None: without it."""
    data = tmp_path / "data"
    (data / VERSION).mkdir(parents=True)
    for other in ("samples", "sweeps", "maps"):
        (data / other).symlink_to(made / other)
    for table in (made / VERSION).iterdir():
        (data / VERSION / table.name).symlink_to(table)
    cfg.DATA_PATH = str(data)

    def change(name: str, content: str | None) -> EasyDict:
        table = data / VERSION / f"{name}.json"
        table.unlink()
        if content is not None:
            table.write_text(content)
        return cfg

    return change


@pytest.mark.parametrize(("name", "content", "message"), [
    ("sample_annotation", None, "sample_annotation.json: this table of nuScenes is missing"),
    ("sample_data", "[{", "sample_data.json: not a table of nuScenes"),
    ("sample", "{}", "sample.json: not a table of nuScenes"),
    ("scene", "[]", "has no scene of the split train, such as scene-0061"),
    ("ego_pose", "[]", "ego_pose.json: has no row"),
])  # fmt: skip
def test_a_table_that_cannot_be_used_is_named(
    with_table: Callable[[str, str | None], EasyDict], name: str, content: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare_nuscenes(with_table(name, content), CLASSES)


@pytest.mark.parametrize(("name", "key", "value"), [
    ("sample_annotation", "num_lidar_pts", None),
    ("sample_annotation", "sample_token", ["x"]),
    ("sample_annotation", "size", [1.0, 2.0]),
    ("sample_data", "timestamp", "x"),
    ("sample_data", "prev", 1),
    ("ego_pose", "rotation", [1.0]),
    ("ego_pose", "translation", [0.0, float("nan"), 0.0]),
    ("calibrated_sensor", "camera_intrinsic", "x"),
    ("sample", "timestamp", 10**400),
    ("lidarseg", "filename", None),
])  # fmt: skip
def test_a_broken_row_of_a_table_is_named(
    with_table: Callable[[str, str | None], EasyDict], made: Path, name: str, key: str, value: Any
) -> None:
    rows = json.loads((made / VERSION / f"{name}.json").read_text())
    for row in rows[-8:]:
        row[key] = value
    with pytest.raises(DataError, match=f"{name}.json: each row must have a sound {key}"):
        prepare_nuscenes(with_table(name, json.dumps(rows)), CLASSES)


def test_a_version_without_annotations_has_no_boxes(
    with_table: Callable[[str, str | None], EasyDict],
) -> None:
    cfg = with_table("sample_annotation", "[]")
    assert prepare_nuscenes(cfg, CLASSES, workers=1).objects == {}
    assert not any("gt_boxes" in info for info in read(cfg, VAL))


def test_the_command_prepares_and_says_what_it_wrote(
    root: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(root / "cfgs/nuscenes_models/stage1_detect.yaml")
    sets = ["DATA_CONFIG.DATA_PATH", str(made), "DATA_CONFIG.VERSION", VERSION]
    words = ["prepare", "nuscenes", "--cfg_file", file, "--out", str(tmp_path), "--set", *sets]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "frames: 14 train, 26 test" in told and "DATA_CONFIG.INFO_ROOT" in told
    assert (tmp_path / "nuscenes_dbinfos_10sweeps_withvelo_x_forward.pkl").is_file()
