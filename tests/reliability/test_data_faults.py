"""Bad frames, labels, calibrations and database objects are named, left out by one policy, and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from kitti_maker import CAR, make_kitti

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.datasets.augmentor.database import DATABASE
from pcdet_freeze.datasets.collate import collate
from pcdet_freeze.datasets.file_formats.files import read_bin, read_pickle, write_pickle
from pcdet_freeze.datasets.kitti import KittiDataset, prepare_kitti
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.kitti.frame_files import FrameFiles
from pcdet_freeze.datasets.kitti.labels import read_labels
from pcdet_freeze.datasets.packed import opening
from pcdet_freeze.datasets.packed.packing import pack
from pcdet_freeze.datasets.reading.bad_data import FRAME, OBJECT, BadFramePolicy, BadItem
from pcdet_freeze.errors import ConfigError, DataError

CLASSES = ["Car", "Pedestrian"]
INFOS = "kitti_infos_train.pkl"


@pytest.fixture
def cfg(tmp_path: Path, root: Path) -> EasyDict:
    """Three frames with planes and a database; every car and pedestrian may be pasted."""
    data = cfg_from_yaml_file(root / "cfgs/kitti_models/pointpillar.yaml").DATA_CONFIG
    data.DATA_PATH = str(make_kitti(tmp_path / "kitti", planes=True))
    prepare_kitti(data, CLASSES, workers=1)
    sampling = data.DATA_AUGMENTOR.AUG_CONFIG_LIST[0]
    sampling.update(PREPARE={}, SAMPLE_GROUPS=["Car:5", "Pedestrian:5"], LIMIT_WHOLE_SCENE=False)
    data.DATA_AUGMENTOR.AUG_CONFIG_LIST = [sampling]
    return data


def damage(cfg: EasyDict, change: Callable[[list[Any]], object]) -> None:
    path = Path(cfg.DATA_PATH) / INFOS
    infos = read_pickle(path)
    change(infos)
    write_pickle(path, infos)


def put(*path: Any, value: Any) -> Callable[[list[Any]], object]:
    """Set the value at ``path`` of the entry of frame 1."""

    def change(infos: list[Any]) -> None:
        node = infos
        for key in (1, *path)[:-1]:
            node = node[key]
        node[(1, *path)[-1]] = value

    return change


def drop(*path: Any) -> Callable[[list[Any]], object]:
    def change(infos: list[Any]) -> None:
        node = infos[1]
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return change


SHEAR = np.eye(4)
SHEAR[0, 1] = 0.2
ENTRIES = {
    "no mapping": (put(value=5), "entry 1 of kitti_infos_train.pkl: an entry of an info file is a dict"),
    "no frame": (drop("point_cloud"), "entry 1 of"),
    "frame outside": (put("point_cloud", "lidar_idx", value="../../x"), "must stay within"),
    "no calib": (drop("calib"), "frame 000001: its info lacks calib"),
    "no image": (drop("image"), "frame 000001: its info lacks"),
    "singular": (put("calib", "R0_rect", value=np.zeros((4, 4))), "R0_rect must be a rotation"),
    "sheared": (put("calib", "Tr_velo_to_cam", value=SHEAR), "Tr_velo_to_cam must be a rotation"),
    "mirrored": (put("calib", "R0_rect", value=np.diag([-1.0, 1, 1, 1])), "must be a rotation"),
    "far sensor": (put("calib", "Tr_velo_to_cam", 0, 3, value=1e6), "translation of Tr_velo_to_cam"),
    "NaN in calib": (put("calib", "P2", value=np.full((4, 4), np.nan)), "P2 must be 3 by 4 finite numbers"),
    "calib of another shape": (put("calib", "P2", value=np.eye(2)), "P2 must be 3 by 4"),
    "NaN in a box": (put("annos", "location", 0, 1, value=np.nan), "box 0 holds NaN or inf"),
    "inf in a box": (put("annos", "rotation_y", 0, value=np.inf), "box 0 holds NaN or inf"),
    "flat box": (put("annos", "dimensions", 0, 1, value=1e-16), "must have edges of 0.01 to 100 m"),
    "far box": (put("annos", "location", 0, 0, value=1e6), "within 10000 m"),
    "no names": (drop("annos", "name"), "annos of its info are broken"),
    "other length": (put("annos", "location", value=np.zeros((7, 3))), "annos of its info are broken"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_bad_entry_of_an_info_file_is_skipped_by_name_or_an_error(cfg: EasyDict, name: str) -> None:
    change, reason = ENTRIES[name]
    damage(cfg, change)
    sample = KittiDataset(cfg, CLASSES)[1]
    assert sample["frame_id"] == "000002" and len(sample["bad_data"]) == 1
    assert sample["bad_data"][0].kind == FRAME and reason in sample["bad_data"][0].reason
    cfg.ON_BAD_FRAME = "raise"
    with pytest.raises(DataError, match="ON_BAD_FRAME: skip leaves it out"):
        KittiDataset(cfg, CLASSES)[1]


def test_an_evaluation_always_raises(cfg: EasyDict) -> None:
    damage(cfg, ENTRIES["NaN in a box"][0])
    cfg.INFO_PATH.test = [INFOS]
    dataset = KittiDataset(cfg, CLASSES, training=False)
    for read in (lambda: dataset[1], dataset.ground_truth_annos):
        with pytest.raises(DataError, match=r"frame 000001: .*NaN"):
            read()


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"", b"a\nb\nc\n1 2 3\n", b"#\n#\n#\n0 0 0 1\n",
                                  b"#\n#\n#\n1 0.1 0 1\n", b"#\n#\n#\n0 1e300 0 1\n"])  # fmt: skip
def test_a_plane_that_is_none_is_a_bad_frame(cfg: EasyDict, text: bytes) -> None:
    path = Path(cfg.DATA_PATH) / "training/planes/000001.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"planes/000001\.txt"):
        FrameFiles(Path(cfg.DATA_PATH) / "training").road_plane("000001")
    assert KittiDataset(cfg, CLASSES)[1]["bad_data"][0].name == "000001"


def objects(cfg: EasyDict) -> list[Path]:
    return sorted((Path(cfg.DATA_PATH) / "gt_database").iterdir())


def spoil(path: Path, way: str) -> None:
    raw = path.read_bytes()
    points = np.frombuffer(raw, "<f4").copy()
    if way == "deleted":
        path.unlink()
    elif way == "NaN":
        points[5] = np.nan
        points.tofile(path)
    else:
        path.write_bytes(raw[: len(raw) // 32 * 16] if way == "halved" else raw[:-3])


@pytest.mark.parametrize("way", ["deleted", "halved", "cut", "NaN"])
def test_a_bad_database_object_is_left_out_by_name_or_an_error(cfg: EasyDict, way: str) -> None:
    for path in objects(cfg):
        spoil(path, way)
    dataset = KittiDataset(cfg, CLASSES)
    sample = next(s for s in map(dataset.__getitem__, range(3)) if "bad_data" in s)
    assert {item.kind for item in sample["bad_data"]} == {OBJECT}
    assert len(sample["gt_boxes"]) == len(set(map(bytes, sample["gt_boxes"]))) <= 2
    assert sample["skipped_frames"] == []
    cfg.ON_BAD_FRAME = "raise"
    with pytest.raises(DataError, match=r"gt_database/.*\.bin.*ON_BAD_FRAME: skip"):
        [KittiDataset(cfg, CLASSES)[index] for index in range(3)]


@pytest.mark.parametrize("entry", [5, {"name": "Car"}, {"box3d_lidar": np.full(7, np.nan)}, {"path": 3}])
def test_a_bad_entry_of_the_database_is_left_out_at_the_start(
    cfg: EasyDict, entry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(cfg.DATA_PATH) / "kitti_dbinfos_train.pkl"
    database = read_pickle(path)
    whole = sum(map(len, database.values()))
    changed = isinstance(entry, dict) and "name" not in entry
    database["Car"][0] = {**database["Car"][0], **entry} if changed else entry
    write_pickle(path, database)
    assert KittiDataset(cfg, CLASSES).totals()[OBJECT] == whole - 1
    assert "left out of the database" in caplog.text and "entry 0 of Car" in caplog.text


def test_a_record_of_the_database_that_is_damaged_after_the_start_is_left_out_by_name_or_an_error(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "PACK_FROM", 0)
    source = Path(cfg.DATA_PATH) / "kitti_dbinfos_train.pkl"
    pack(DATABASE, [source], packed := source.with_suffix(".packed"))
    dataset = KittiDataset(cfg, CLASSES)
    with packed.open("r+b") as file:  # the first record follows a line of text
        file.seek(60)
        file.write(b"\0\0\0")
    samples = [dataset[index] for index in range(3)]
    found = {(item.kind, item.name) for sample in samples for item in sample.get("bad_data", [])}
    assert len(found) == 1 and next(iter(found))[0] == OBJECT and "entry 0" in next(iter(found))[1]
    assert caplog.text.count("skipped database object entry 0") == 1
    dataset.data_augmentor.steps[0].policy = BadFramePolicy(skip=False)
    with pytest.raises(DataError, match=r"kitti_dbinfos_train\.packed: entry 0 .*ON_BAD_FRAME: skip"):
        [dataset[index] for index in range(3)]


def test_a_path_of_the_database_stays_within_its_folder(cfg: EasyDict) -> None:
    path = Path(cfg.DATA_PATH) / "kitti_dbinfos_train.pkl"
    database = read_pickle(path)
    for entries in database.values():
        for entry in entries:
            entry["path"] = "../outside/secret.bin"
    write_pickle(path, database)
    cfg.ON_BAD_FRAME = "raise"
    with pytest.raises(DataError, match=r"must stay within .*'\.\./outside/secret\.bin'"):
        [KittiDataset(cfg, CLASSES)[index] for index in range(3)]


@pytest.mark.parametrize("key, value", [("ON_BAD_FRAME", "ignore"), ("BAD_FRAME_LIMIT", 2), ("TIMEOUT", -1),
                                        ("TIMEOUT", "60"), ("ON_IMPLAUSIBLE", True)])  # fmt: skip
def test_a_policy_that_is_none_is_a_config_error(cfg: EasyDict, key: str, value: Any) -> None:
    cfg[key] = value
    with pytest.raises(ConfigError, match=rf"DATA_CONFIG\.{key} must be"):
        KittiDataset(cfg, CLASSES)


def test_bad_data_reach_the_batch_and_batches_without_have_no_key() -> None:
    bad = BadItem(FRAME, "000003", "broken")
    samples = [{"points": np.zeros((1, 4), np.float32), "frame_id": "a"},
               {"points": np.zeros((1, 4), np.float32), "frame_id": "b", "bad_data": [bad]}]  # fmt: skip
    assert collate(samples)["bad_data"] == [bad] and "bad_data" not in collate(samples[:1])


LABELS = {
    "height 1e-16": (CAR.replace("1.50 1.60 4.00", "1e-16 1.60 4.00"), "0.01 to 100 m"),
    "length 1e6": (CAR.replace("4.00", "1e6"), "0.01 to 100 m"),
    "far away": (CAR.replace("15.00", "1e5"), "within 10000 m"),
    "a path as a type": (CAR.replace("Car", "x/../../../escaped"), "a name without /"),
}


@pytest.mark.parametrize("name", LABELS)
def test_an_impossible_label_names_file_and_line(tmp_path: Path, name: str) -> None:
    line, reason = LABELS[name]
    (tmp_path / "a.txt").write_text(f"{CAR}\n{line}\n")
    with pytest.raises(DataError, match=rf"a\.txt, line 2: .*{reason}"):
        read_labels(tmp_path / "a.txt")


def test_labels_with_scores_are_named(cfg: EasyDict, caplog: pytest.LogCaptureFixture) -> None:
    (Path(cfg.DATA_PATH) / "training/label_2/000001.txt").write_text(f"{CAR} 0.83\n")
    report = prepare_kitti(cfg, CLASSES, workers=1)
    assert report.scored == ["000001"] and "label lines of 1 frames have a score" in caplog.text
    KittiDataset(cfg, CLASSES)
    assert "labels of 1 of 3 frames have scores" in caplog.text


def test_a_calibration_file_that_is_no_rotation_is_named(tmp_path: Path, cfg: EasyDict) -> None:
    path = Path(cfg.DATA_PATH) / "training/calib/000001.txt"
    path.write_text(path.read_text().replace("R0_rect: 1 0 0", "R0_rect: 2 0 0"))
    with pytest.raises(DataError, match=r"000001\.txt: R0_rect must be a rotation.*2\.0"):
        Calibration.from_file(path)
    assert "training/000001" in prepare_kitti(cfg, CLASSES, workers=1).skipped


def test_points_beyond_ten_kilometres_are_named(tmp_path: Path) -> None:
    points = np.ones((4, 4), np.float32)
    points[:, 3] = 65535  # an intensity of 16 bits is no coordinate
    points.tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_bin(tmp_path / "a.bin", 4), points)
    points[2, 1] = 4e5
    points.tofile(tmp_path / "a.bin")
    with pytest.raises(
        DataError, match=r"a\.bin: points must lie within 10000 m .*1 of 4 do not.*1, 400000, 1"
    ):
        read_bin(tmp_path / "a.bin", 4)


def test_bad_frames_do_not_change_the_random_numbers_of_others(cfg: EasyDict) -> None:
    whole = KittiDataset(cfg, CLASSES)[2]
    damage(cfg, ENTRIES["no calib"][0])
    _, loader, _ = build_dataloader(cfg, CLASSES, 1, training=True)
    after = next(batch for batch in loader if batch["frame_id"][0] == "000002" and "bad_data" not in batch)
    np.testing.assert_array_equal(after["points"][:, 1:], whole["points"])
