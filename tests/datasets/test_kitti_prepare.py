"""`prepare kitti`: OpenPCDet's info files, with valid and invalid frames."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from kitti_maker import make_kitti

from pcdet_freeze.cli import prepare as command
from pcdet_freeze.cli.arguments.prepare import add_arguments
from pcdet_freeze.datasets.file_formats.files import read_pickle
from pcdet_freeze.datasets.kitti import prepare_kitti
from pcdet_freeze.errors import ConfigError, DataError

CLASSES = ["Car", "Pedestrian", "Cyclist"]
ANNOS = {"name", "truncated", "occluded", "alpha", "bbox", "dimensions", "location", "rotation_y", "score",
         "difficulty", "index", "gt_boxes_lidar", "num_points_in_gt"}  # fmt: skip
OBJECT = {
    "name",
    "path",
    "image_idx",
    "gt_idx",
    "box3d_lidar",
    "num_points_in_gt",
    "difficulty",
    "bbox",
    "score",
}


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["kitti", *words])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_infos_have_openpcdets_keys(kitti_cfg: EasyDict) -> None:
    info = pickle.loads((Path(kitti_cfg.DATA_PATH) / "kitti_infos_train.pkl").read_bytes())[0]
    assert info["point_cloud"] == {"num_features": 4, "lidar_idx": "000000"}
    assert info["image"]["image_idx"] == "000000"
    assert info["image"]["image_shape"].tolist() == [200, 600]
    assert info["calib"].keys() == {"P2", "R0_rect", "Tr_velo_to_cam"}
    assert info["annos"].keys() == ANNOS


def test_the_infos_count_the_points_that_the_camera_sees_in_a_box(kitti_cfg: EasyDict) -> None:
    annos = read_pickle(Path(kitti_cfg.DATA_PATH) / "kitti_infos_train.pkl")[0]["annos"]
    assert annos["name"].tolist() == ["Car", "DontCare"]
    assert annos["num_points_in_gt"].tolist() == [40, -1]
    assert annos["index"].tolist() == [0, -1]
    np.testing.assert_allclose(annos["gt_boxes_lidar"], [[15, 2, -0.75, 4, 1.6, 1.5, -np.pi / 2]], rtol=1e-6)


def test_splits_are_those_of_image_sets(kitti_cfg: EasyDict) -> None:
    root = Path(kitti_cfg.DATA_PATH)
    ids = {}
    for split in ("train", "val", "trainval"):
        infos = read_pickle(root / f"kitti_infos_{split}.pkl")
        ids[split] = [info["point_cloud"]["lidar_idx"] for info in infos]
    assert ids["train"] == ids["trainval"] == ["000000", "000001", "000002"]
    assert ids["val"] == ["000001", "000002"]
    assert not (root / "kitti_infos_test.pkl").exists()


def test_a_test_split_has_no_annotations(raw_kitti: EasyDict) -> None:
    root = Path(raw_kitti.DATA_PATH)
    make_kitti(root / "copy", frames=1)
    (root / "copy/training").rename(root / "testing")
    (root / "ImageSets/test.txt").write_text("000000\n")
    assert prepare_kitti(raw_kitti, CLASSES).frames["test"] == 1
    assert "annos" not in read_pickle(root / "kitti_infos_test.pkl")[0]


def test_the_database_holds_objects_relative_to_their_box(kitti_cfg: EasyDict) -> None:
    root = Path(kitti_cfg.DATA_PATH)
    database = read_pickle(root / "kitti_dbinfos_train.pkl")
    assert {name: len(infos) for name, infos in database.items()} == {"Car": 2, "Pedestrian": 2}
    car = database["Car"][0]
    assert car.keys() == OBJECT
    assert car["path"] == "gt_database/000000_Car_0.bin"
    points = np.fromfile(root / car["path"], np.float32).reshape(-1, 4)
    assert len(points) == car["num_points_in_gt"] == 40
    assert np.abs(points[:, :2]).max() < 2


def test_out_writes_there_and_leaves_the_data_alone(raw_kitti: EasyDict, tmp_path: Path) -> None:
    before = snapshot(Path(raw_kitti.DATA_PATH))
    prepare_kitti(raw_kitti, CLASSES, out_dir=tmp_path / "infos")
    assert snapshot(Path(raw_kitti.DATA_PATH)) == before
    assert {"kitti_infos_val.pkl", "kitti_dbinfos_train.pkl"} <= snapshot(tmp_path / "infos").keys()


def test_workers_and_a_second_run_change_no_byte(raw_kitti: EasyDict, tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 3), ("a", 2)):
        prepare_kitti(raw_kitti, CLASSES, out_dir=tmp_path / name, workers=workers)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def spoil(root: Path, what: str) -> None:
    folder = root / "training"
    if what == "velodyne":
        (folder / "velodyne/000001.bin").write_bytes(b"123")
    elif what == "label_2":
        (folder / "label_2/000001.txt").write_text("Car 1 2\n")
    elif what == "image_2":
        (folder / "image_2/000001.png").unlink()
    else:
        (folder / "calib/000001.txt").write_text("")


@pytest.mark.parametrize("what", ["velodyne", "label_2", "image_2", "calib"])
def test_a_bad_frame_is_left_out_named_and_counted(
    raw_kitti: EasyDict, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    spoil(Path(raw_kitti.DATA_PATH), what)
    report = prepare_kitti(raw_kitti, CLASSES)
    assert report.frames == {"train": 2, "val": 1, "trainval": 2}
    assert list(report.skipped) == ["training/000001"]
    assert what in report.skipped["training/000001"]
    assert "skipped frame training/000001" in caplog.text
    assert "skipped frames: 1" in str(report)


def test_no_valid_frame_is_an_error_and_old_infos_are_kept(kitti_cfg: EasyDict) -> None:
    root = Path(kitti_cfg.DATA_PATH)
    before = (root / "kitti_infos_train.pkl").read_bytes()
    for path in (root / "training/velodyne").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable frame.*000000\.bin: empty"):
        prepare_kitti(kitti_cfg, CLASSES)
    assert (root / "kitti_infos_train.pkl").read_bytes() == before


def test_a_frame_without_boxes_is_prepared(raw_kitti: EasyDict) -> None:
    root = Path(raw_kitti.DATA_PATH)
    (root / "training/label_2/000000.txt").write_text("")
    assert prepare_kitti(raw_kitti, CLASSES).frames["train"] == 3
    assert read_pickle(root / "kitti_infos_train.pkl")[0]["annos"]["gt_boxes_lidar"].shape == (0, 7)


def test_a_missing_folder_names_path_and_command(raw_kitti: EasyDict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*pcdet-freeze prepare kitti.*DATA_PATH"):
        prepare_kitti(raw_kitti, CLASSES, data_path=tmp_path / "nowhere")


def test_missing_split_files_are_named(raw_kitti: EasyDict) -> None:
    (Path(raw_kitti.DATA_PATH) / "ImageSets/val.txt").unlink()
    with pytest.raises(DataError, match=r"ImageSets.*val\.txt is not there"):
        prepare_kitti(raw_kitti, CLASSES)


def test_a_folder_that_cannot_be_written_is_an_error(raw_kitti: EasyDict, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="--out DIR"):
        prepare_kitti(raw_kitti, CLASSES, out_dir=tmp_path / "file" / "sub")


def test_classes_without_objects_are_noted(raw_kitti: EasyDict, caplog: pytest.LogCaptureFixture) -> None:
    prepare_kitti(raw_kitti, CLASSES)
    assert "no Cyclist" in caplog.text


def test_the_command_prepares(raw_kitti: EasyDict, root: Path, tmp_path: Path, capsys: Any) -> None:
    cfg_file = str(root / "cfgs/dataset_configs/kitti_dataset.yaml")
    args = parse(
        "--cfg_file", cfg_file, "--set", "DATA_PATH", raw_kitti.DATA_PATH, "--out", str(tmp_path / "o")
    )
    assert command.run(args) == 0
    printed = capsys.readouterr().out
    assert "frames: 3 train, 2 val, 3 trainval" in printed
    assert f"INFO_ROOT {tmp_path / 'o'}" in printed


def test_the_command_takes_a_model_config(raw_kitti: EasyDict, root: Path) -> None:
    cfg_file = str(root / "cfgs/kitti_models/pointpillar.yaml")
    assert (
        command.run(parse("--cfg_file", cfg_file, "--set", "DATA_CONFIG.DATA_PATH", raw_kitti.DATA_PATH)) == 0
    )
    assert (Path(raw_kitti.DATA_PATH) / "kitti_infos_train.pkl").is_file()


def test_the_command_refuses_another_data_set(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("DATASET: SyntheticDataset\n")
    with pytest.raises(ConfigError, match="needs DATASET: KittiDataset"):
        command.run(parse("--cfg_file", str(tmp_path / "other.yaml")))


def test_real_boxes_hold_the_points_that_they_are_known_to_hold(
    real_data: Path, pillar_cfg: EasyDict, tmp_path: Path
) -> None:
    report = prepare_kitti(pillar_cfg, CLASSES, data_path=real_data / "kitti", out_dir=tmp_path)
    assert report.frames == {"train": 3, "val": 3, "trainval": 3}
    found = {}
    for info in read_pickle(tmp_path / "kitti_infos_train.pkl"):
        annos = info["annos"]
        found |= dict(zip(annos["name"], annos["num_points_in_gt"], strict=True))
    assert (found["Pedestrian"], found["Truck"], found["Misc"]) == (377, 71, 1349)
