"""`prepare custom`: OpenPCDet's infos, the ground-truth database, label lines, interrupted runs."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from custom_maker import LIMITS, make_custom
from easydict import EasyDict

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.custom import prepare_custom
from pcdet_freeze.datasets.custom.boxes import read_boxes
from pcdet_freeze.datasets.custom.frames import CustomFrames
from pcdet_freeze.datasets.prepare_parts import PrepareReport
from pcdet_freeze.errors import DataError

CLASSES = ["Vehicle", "Pedestrian"]


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped data config on a tiny folder of boxes."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/custom_dataset.yaml")
    shipped.update(
        DATA_PATH=str(make_custom(tmp_path / "data", labels=False)), POINT_CLOUD_RANGE=list(LIMITS)
    )
    return shipped


@pytest.fixture
def data(cfg: EasyDict) -> Path:
    return Path(cfg.DATA_PATH)


def read(data: Path, name: str) -> Any:
    return pickle.loads((data / name).read_bytes())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_infos_have_openpcdets_keys(cfg: EasyDict, data: Path) -> None:
    report = prepare_custom(cfg, CLASSES, workers=2)
    assert report.frames == {"train": 3, "val": 2} and report.labels == {"gt_boxes": 3}
    info = read(data, "custom_infos_train.pkl")[0]
    assert info["point_cloud"] == {"num_features": 4, "lidar_idx": "000000"}
    assert info["annos"]["name"].tolist() == CLASSES and info["annos"]["gt_boxes_lidar"].shape == (2, 7)
    assert info["annos"]["num_points_in_gt"].tolist() == [60, 20]
    assert not (data / ".custom_parts").exists()


def test_the_database_holds_objects_relative_to_their_box(cfg: EasyDict, data: Path) -> None:
    prepare_custom(cfg, CLASSES)
    entries = read(data, "custom_dbinfos_train.pkl")
    assert {name: len(found) for name, found in entries.items()} == {"Vehicle": 3, "Pedestrian": 3}
    car = entries["Vehicle"][0]
    assert car["path"] == "gt_database/000000_Vehicle_0.bin" and car["num_points_in_gt"] == 60
    points = np.fromfile(data / car["path"], "<f4").reshape(-1, 4)
    assert len(points) == 60 and np.abs(points[:, :2]).max() < 2


def test_gt_sampling_and_the_other_augmentors_run_on_the_shipped_config(cfg: EasyDict, data: Path) -> None:
    prepare_custom(cfg, CLASSES)
    (data / "labels/000002.txt").write_text("-8 8 0 4 2 1.6 0 Vehicle")
    prepare_custom(cfg, CLASSES)  # a frame with room for a walker
    sample = build_dataset(cfg, CLASSES, True)[2]
    assert sample["gt_boxes"][:, 7].tolist().count(2) == 1


def test_a_second_run_and_workers_change_no_byte(cfg: EasyDict, tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 3), ("a", 2)):
        prepare_custom(cfg, CLASSES, out_dir=tmp_path / name, workers=workers)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b") != {}


def test_an_interrupted_run_continues_with_the_frames_that_are_left(
    cfg: EasyDict, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    sample = CustomFrames.sample

    def stops(self: CustomFrames, frame: str) -> Any:
        begun.append(frame)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return sample(self, frame)

    monkeypatch.setattr(CustomFrames, "sample", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_custom(cfg, CLASSES, workers=1)
    assert not (data / "custom_infos_train.pkl").exists()
    begun[:] = ["", ""]  # no further interrupt
    prepare_custom(cfg, CLASSES, workers=1)
    assert begun[2] == "000001" and "000000" not in begun  # the third frame may have been under way
    assert len(read(data, "custom_infos_train.pkl")) == 3


def test_a_part_is_written_anew_where_a_file_or_the_config_changed(
    cfg: EasyDict, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pcdet_freeze.datasets.custom.prepare._write", stops)
        with pytest.raises(KeyboardInterrupt):
            prepare_custom(cfg, CLASSES)
    (data / "labels/000000.txt").write_text("1 2 0 4 2 1.6 0 Vehicle")
    cfg.INTENSITY = {"SCALE": 2}
    prepare_custom(cfg, CLASSES)
    assert read(data, "custom_infos_train.pkl")[0]["annos"]["gt_boxes_lidar"][0, 0] == 1
    car = read(data, "custom_dbinfos_train.pkl")["Vehicle"][1]
    assert np.fromfile(data / car["path"], "<f4").reshape(-1, 4)[:, 3].max() < 0.21


LINES = {
    "1 2 3 4 2 1 0 Car": ("Car", [1, 2, 3, 4, 2, 1, 0]),
    "1.5 -2 3e0 38 9 15 -1.57 boat   ": ("boat", [1.5, -2, 3, 38, 9, 15, -1.57]),
    "\t1  2 3\t4 2 1 0 traffic cone\r": ("traffic cone", [1, 2, 3, 4, 2, 1, 0]),
}


@pytest.mark.parametrize("line", LINES)
def test_a_label_line_may_have_whole_numbers_blanks_and_several_words(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(f"{line}\n\n9 9 9 0 0 0 0 DontCare")
    boxes, names = read_boxes(tmp_path / "a.txt")
    name, numbers = LINES[line]
    assert names.tolist() == [name]
    np.testing.assert_array_equal(boxes, np.float32([numbers]))


@pytest.mark.parametrize(("line", "message"), [
    ("1 2 3 4 2 1 0", "x y z dx dy dz heading class"), ("1 2 3 4 2 1 Car", "Car"),
    ("Car 1 2 3 4 2 1 0", "x y z dx dy dz heading class"), ("1 2 3 4 2 1 0 Car 0.9", "ends with a number"),
    ("1 2 3 4 0 1 0 Car", "edges of 0.01"), ("1 2 nan 4 2 1 0 Car", "NaN"),
    ("1 2 3 4 2 1 0 a/b", "without /"), ("1e9 2 3 4 2 1 0 Car", "10000 m"),
])  # fmt: skip
def test_a_bad_label_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(f"1 2 3 4 2 1 0 Car\n{line}\n")
    with pytest.raises(DataError, match=rf"a\.txt, line 2: .*{message}"):
        read_boxes(tmp_path / "a.txt")


def test_a_bad_frame_is_left_out_and_named(cfg: EasyDict, data: Path) -> None:
    (data / "labels/000000.txt").write_text("1 2")
    (data / "points/000001.npy").write_bytes(b"\x93NUMPY")
    report = prepare_custom(cfg, CLASSES)
    assert report.frames == {"train": 1, "val": 1} and set(report.skipped) == {"000000", "000001"}
    (data / "ImageSets/train.txt").write_text("000000\n000001")
    with pytest.raises(DataError, match=r"train\.txt has no usable frame; the first fault: .*000000\.txt"):
        prepare_custom(cfg, CLASSES)
    (data / "points/000002.npy").unlink()
    with pytest.raises(DataError, match=r"no usable frame for train and val; .*000000\.txt"):
        prepare_custom(cfg, CLASSES)


def test_the_command_prints_anchors_that_a_config_takes(
    cfg: EasyDict, root: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cfg_file", "dataset_configs/custom_dataset.yaml", "--set", "DATA_PATH", str(data)]
    assert main(["prepare", "custom", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    (car, walker) = (yaml.safe_load(line)[0] for line in lines if line.startswith("- {"))
    assert car["anchor_sizes"] == [[4, 2, 1.6]] and car["anchor_bottom_heights"] == [-1.0]
    assert walker["class_name"] == "Pedestrian" and walker["matched_threshold"] == 0.5
    assert any("training frames with labels: 3 gt_boxes" in line for line in lines)


@pytest.mark.parametrize("name", ["traffic cone", "no", "1st, left", "a: b", "Stra\u00dfenbahn"])
def test_the_anchor_of_a_class_of_any_name_is_valid_yaml(cfg: EasyDict, data: Path, name: str) -> None:
    (data / "labels/000000.txt").write_text(f"1 2 0 4 2 1.6 0 {name}")
    lines = "\n".join(prepare_custom(cfg, [name]).anchors).splitlines()
    assert yaml.safe_load(next(line for line in lines if line.startswith("- {")))[0]["class_name"] == name


def test_the_report_counts_the_points_of_classes_only_where_a_data_set_does() -> None:
    assert "points" not in str(PrepareReport(frames={"train": 2}))
    assert "points of each class in the training frames: 7 road;" in str(PrepareReport(points={"road": 7}))


def test_classes_without_boxes_and_labels_that_are_not_found_are_named(
    cfg: EasyDict, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare_custom(cfg, ["Car"])
    assert "no box of the class Car; their classes: Vehicle, Pedestrian" in caplog.text
    (data / "labels").rename(data / "kitti_label")
    assert prepare_custom(cfg, CLASSES).labels == {}
    assert "no training frame has boxes" in caplog.text and "rename kitti_label to labels" in caplog.text


def test_objects_of_frames_with_like_names_have_files_of_their_own(cfg: EasyDict, data: Path) -> None:
    for frame, source in (("a/b", "000000"), ("a_b", "000001")):
        for folder, suffix in (("points", ".npy"), ("labels", ".txt")):
            (data / folder / f"{frame}{suffix}").parent.mkdir(exist_ok=True)
            shutil.copy(data / folder / f"{source}{suffix}", data / folder / f"{frame}{suffix}")
    for split in ("train", "val"):
        (data / f"ImageSets/{split}.txt").write_text("a/b a_b")
    prepare_custom(cfg, CLASSES)
    paths = [entry["path"] for entry in read(data, "custom_dbinfos_train.pkl")["Vehicle"]]
    clouds = [np.fromfile(data / path, "<f4") for path in paths]
    assert len(set(paths)) == 2 and not np.array_equal(*clouds)
