"""ONCE: frames of its infos, and `prepare once`."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from once_maker import CAMERAS, OBJECTS, cloud, frame_id, make_once

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.once import OnceDataset, prepare, prepare_once
from pcdet_freeze.errors import ConfigError, DataError

CLASSES = ["Car", "Bus", "Truck", "Pedestrian", "Cyclist"]


@pytest.fixture
def raw(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped config on a tiny ONCE without infos, without augmentation."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/once_dataset.yaml")
    shipped.update(DATA_PATH=str(make_once(tmp_path / "once")), DATA_AUGMENTOR=None)
    return shipped


@pytest.fixture
def cfg(raw: EasyDict) -> EasyDict:
    """The same with its infos."""
    prepare_once(raw, CLASSES)
    return raw


def dataset(cfg: EasyDict, training: bool = False) -> OnceDataset:
    found = build_dataset(cfg, CLASSES, training)
    assert isinstance(found, OnceDataset)
    return found


def infos_of(cfg: EasyDict, split: str) -> Any:
    return pickle.loads((Path(cfg.DATA_PATH) / f"once_infos_{split}.pkl").read_bytes())


def test_a_frame_has_the_points_and_boxes_of_its_files(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    assert len(frames) == 2 and frames.frame_name(1) == frame_id(2)
    sample = frames.load_sample(1)
    np.testing.assert_array_equal(sample["points"], cloud(2))
    assert sample["gt_names"].tolist() == CLASSES
    expected = [(*centre, *size, heading) for _, centre, size, heading, _ in OBJECTS]
    np.testing.assert_array_equal(sample["gt_boxes"], np.array(expected, np.float32))


def test_infos_hold_openpcdets_keys(cfg: EasyDict) -> None:
    train = infos_of(cfg, "train")
    assert [info["frame_id"] for info in train] == [frame_id(k) for k in (0, 1, 2)] * 2
    first = train[0]
    assert set(first) == {"sequence_id", "frame_id", "timestamp", "prev_id", "next_id", "meta_info", "lidar",
                          "pose", "calib", "annos", *CAMERAS}  # fmt: skip
    assert (first["timestamp"], first["prev_id"], first["next_id"]) == (int(frame_id(0)), None, frame_id(1))
    assert first["calib"]["cam01"]["cam_to_velo"].shape == (4, 4)
    assert first["annos"]["num_points_in_gt"].tolist() == [30, 20, 15, 10, 8]
    assert set(first["annos"]) == {"name", "boxes_3d", "boxes_2d", "num_points_in_gt"}
    assert "annos" not in infos_of(cfg, "raw_small")[0]


def test_the_database_holds_the_objects_of_the_training(cfg: EasyDict) -> None:
    root = Path(cfg.DATA_PATH)
    database = pickle.loads((root / "once_dbinfos_train.pkl").read_bytes())
    assert {name: len(entries) for name, entries in database.items()} == dict.fromkeys(CLASSES, 4)
    entry = database["Truck"][0]
    assert entry["path"] == f"gt_database/000076_{frame_id(0)}_Truck_2.bin"
    points = np.fromfile(root / entry["path"], np.float32).reshape(-1, 4)
    assert len(points) == entry["num_points_in_gt"] == 15


def test_gt_sampling_pastes_what_prepare_wrote(cfg: EasyDict, root: Path) -> None:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/once_dataset.yaml")
    cfg.DATA_AUGMENTOR = shipped.DATA_AUGMENTOR
    frames = dataset(cfg, True)
    assert frames.data_augmentor is not None and frames.data_augmentor.steps[0].size == 20
    assert len(frames[0]["gt_boxes"]) == 5


def test_a_split_without_any_box_is_an_error(cfg: EasyDict) -> None:
    cfg.DATA_SPLIT.test = "test"
    with pytest.raises(DataError, match=r"once_infos_test.pkl: none of the 4 frames has boxes"):
        dataset(cfg)


def test_missing_infos_name_the_file(raw: EasyDict) -> None:
    with pytest.raises(DataError, match=r"once_infos_val\.pkl.*cannot be read"):
        dataset(raw)


def test_a_split_needs_info_files(cfg: EasyDict) -> None:
    cfg.DATA_SPLIT.train = "raw_small"
    with pytest.raises(ConfigError, match=r"INFO_PATH\.raw_small is required"):
        dataset(cfg)


@pytest.mark.parametrize(("change", "message"), [
    (lambda info: info.pop("frame_id"), r"must hold sequence_id and frame_id"),
    (lambda info: info.update(sequence_id=".."), r"must stay within"),
    (lambda info: info["annos"].pop("boxes_3d"), rf"frame {frame_id(0)}: the annos .* broken"),
    (lambda info: info["annos"].update(boxes_3d=np.zeros((5, 7))), r"edges"),
    (lambda info: info["annos"].update(name=np.array(["Car"])), r"broken"),
])  # fmt: skip
def test_a_broken_info_is_a_bad_frame(cfg: EasyDict, change: Any, message: str) -> None:
    infos = infos_of(cfg, "val")
    change(infos[0])
    (Path(cfg.DATA_PATH) / "once_infos_val.pkl").write_bytes(pickle.dumps(infos))
    with pytest.raises(DataError, match=message):
        dataset(cfg).load_sample(0)


def test_a_broken_sequence_is_left_out_and_named(raw: EasyDict) -> None:
    path = Path(raw.DATA_PATH) / "data/000080/000080.json"
    content = json.loads(path.read_text())
    del content["frames"][0]["pose"]
    path.write_text(json.dumps(content))
    report = prepare_once(raw, CLASSES)
    assert list(report.skipped) == ["000080"] and "frame 0 must hold pose" in report.skipped["000080"]
    assert report.frames["train"] == 3


def test_prepare_without_the_lists_says_what_is_missing(raw: EasyDict) -> None:
    (Path(raw.DATA_PATH) / "ImageSets/val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt is not there"):
        prepare_once(raw, CLASSES)


def test_an_interrupted_prepare_continues_with_the_next_sequence(
    raw: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    original, made = prepare._part, []

    def stopped(root: Path, name: str, out: Path | None) -> Any:
        if name == "000027":
            raise StopError
        return original(root, name, out)

    monkeypatch.setattr(prepare, "_part", stopped)
    with pytest.raises(StopError):
        prepare_once(raw, CLASSES, workers=1)
    assert not (Path(raw.DATA_PATH) / "once_dbinfos_train.pkl").exists()
    monkeypatch.setattr(
        prepare, "_part", lambda root, name, out: made.append(name) or original(root, name, out)
    )
    assert prepare_once(raw, CLASSES, workers=1).objects["Car"] == 4
    assert made == ["000027", "000112", "000000"]


def test_the_command_prepares_once(raw: EasyDict, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "once", "--cfg_file", str(root / "cfgs/dataset_configs/once_dataset.yaml"),
             "--set", "DATA_PATH", raw.DATA_PATH]  # fmt: skip
    assert main(words) == 0
    assert "6 train, 3 val, 4 test, 4 raw_small" in capsys.readouterr().out


def test_a_list_of_sequences_that_is_no_text_is_named(raw: EasyDict) -> None:
    (Path(raw.DATA_PATH) / "ImageSets/train.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(DataError, match=r"train\.txt: a split file holds one id a line"):
        prepare_once(raw, CLASSES)
