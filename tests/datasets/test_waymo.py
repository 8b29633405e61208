"""Waymo as OpenPCDet's preparation leaves it: frames, labels, lists, and `prepare waymo`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from waymo_maker import OBJECTS, RAW_INTENSITY, TAG, ZONE, cloud, make_waymo, segment_name

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.waymo import WaymoDataset, prepare, prepare_waymo
from pcdet_freeze.errors import ConfigError, DataError

CLASSES = ["Vehicle", "Pedestrian", "Cyclist"]
DATABASE = f"{TAG}_waymo_dbinfos_train_sampled_1.pkl"


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped config on a tiny Waymo, without augmentation."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/waymo_dataset.yaml")
    shipped.update(DATA_PATH=str(make_waymo(tmp_path)), DATA_AUGMENTOR=None)
    return shipped


def dataset(cfg: EasyDict, training: bool = False) -> WaymoDataset:
    found = build_dataset(cfg, CLASSES, training)
    assert isinstance(found, WaymoDataset)
    return found


def segment(cfg: EasyDict, number: int) -> Path:
    return Path(cfg.DATA_PATH) / TAG / segment_name(number)


def change_infos(cfg: EasyDict, number: int, change: Any) -> None:
    """Apply ``change`` to the first info of a segment."""
    path = segment(cfg, number) / f"{segment_name(number)}.pkl"
    infos = pickle.loads(path.read_bytes())
    change(infos[0])
    path.write_bytes(pickle.dumps(infos))


def test_points_have_five_columns_and_the_tanh_of_the_intensity(cfg: EasyDict) -> None:
    points = dataset(cfg).load_sample(0)["points"]
    raw = cloud(0)
    assert points.dtype == np.float32 and points.shape == (len(raw), 5)
    np.testing.assert_array_equal(points[:, [0, 1, 2, 4]], raw[:, [0, 1, 2, 4]])
    assert (points[:, 3] == np.tanh(np.float32(RAW_INTENSITY))).all()


def test_points_in_no_label_zones_are_left_out_unless_the_flag_is_disabled(cfg: EasyDict) -> None:
    every = len(dataset(cfg).load_sample(0)["points"])
    cfg.DISABLE_NLZ_FLAG_ON_POINTS = False
    assert len(dataset(cfg).load_sample(0)["points"]) == every - ZONE


def test_the_columns_of_the_tanh_can_be_chosen(cfg: EasyDict) -> None:
    cfg.POINTS_TANH_DIM = [3, 4]
    points = dataset(cfg).load_sample(0)["points"]
    assert (points[:, 4] == np.tanh(np.float32(0.2))).all()
    cfg.POINTS_TANH_DIM = []
    assert (dataset(cfg).load_sample(0)["points"][:, 3] == np.float32(RAW_INTENSITY)).all()


def test_training_leaves_out_boxes_without_points_and_no_frame_has_unknown_ones(cfg: EasyDict) -> None:
    train, test = dataset(cfg, True).load_sample(0), dataset(cfg).load_sample(0)
    assert test["gt_names"].tolist() == ["Vehicle", "Pedestrian", "Cyclist", "Vehicle", "Sign"]
    assert train["gt_names"].tolist() == ["Vehicle", "Pedestrian", "Cyclist", "Sign"]
    expected = [(*centre, *size, heading) for _, centre, size, heading, _ in OBJECTS[:5]]
    np.testing.assert_array_equal(test["gt_boxes"], np.array(expected, np.float32))


def test_boxes_have_velocities_with_train_with_speed(cfg: EasyDict) -> None:
    cfg.TRAIN_WITH_SPEED = True
    assert dataset(cfg).load_sample(0)["gt_boxes"].shape == (5, 9)
    change_infos(
        cfg, 2, lambda info: info["annos"].update(gt_boxes_lidar=info["annos"]["gt_boxes_lidar"][:, :7])
    )
    with pytest.raises(DataError, match=r"TRAIN_WITH_SPEED needs boxes of nine columns; got 7"):
        dataset(cfg).load_sample(0)


def test_every_fifth_frame_over_all_segments_is_trained(cfg: EasyDict) -> None:
    frames = dataset(cfg, True)
    assert [frames.frame_name(k) for k in range(len(frames))] == [
        f"{segment_name(0)}_000", f"{segment_name(1)}_000"]  # fmt: skip
    cfg.SAMPLED_INTERVAL.train = 3
    frames = dataset(cfg, True)
    assert [frames.frame_name(k)[-3:] for k in range(len(frames))] == ["000", "003", "001", "004"]
    assert len(dataset(cfg)) == 5


def test_missing_segments_are_counted_and_none_at_all_is_an_error(
    cfg: EasyDict, caplog: pytest.LogCaptureFixture
) -> None:
    dataset(cfg, True)
    assert "1 of 3 segments are not in" in caplog.text
    cfg.PROCESSED_DATA_TAG = "other"
    with pytest.raises(DataError, match=r"none of the 1 segments of ImageSets/val.txt.*PROCESSED_DATA_TAG"):
        dataset(cfg)


def test_the_error_of_a_missing_list_names_the_keys_and_the_folder_of_the_segments(
    cfg: EasyDict, tmp_path: Path
) -> None:
    cfg.DATA_PATH, cfg.PROCESSED_DATA_TAG = str(tmp_path / "elsewhere"), "my_segments"
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(
        DataError, match=r"DATA_CONFIG\.DATA_PATH.*my_segments/ \(DATA_CONFIG\.PROCESSED_DATA_TAG"
    ):
        dataset(cfg)


@pytest.mark.parametrize("name", ["validation_segment-0002_with_camera_labels", "segment-0002"])
def test_segments_are_found_under_the_names_of_other_versions(cfg: EasyDict, name: str) -> None:
    folder = segment(cfg, 2)
    folder.rename(folder.with_name(name))
    infos = folder.with_name(name) / f"{segment_name(2)}.pkl"
    infos.rename(infos.with_name(f"{name}.pkl"))
    assert len(dataset(cfg)) == 5


def test_frames_without_annos_are_frames_without_box_labels(cfg: EasyDict) -> None:
    change_infos(cfg, 2, lambda info: info.pop("annos"))
    frames = dataset(cfg)
    assert "gt_boxes" not in frames.load_sample(0)
    assert [anno is None for anno in frames.ground_truth_annos()] == [True, False, False, False, False]


@pytest.mark.parametrize(("change", "message"), [
    (lambda info: info["annos"].pop("name"), r"frame segment-0002.*must hold name"),
    (lambda info: info["annos"].update(num_points_in_gt=np.zeros(2, int)), r"of one length"),
    (lambda info: info["annos"].update(gt_boxes_lidar=np.full((6, 9), np.nan)), r"NaN or inf"),
    (lambda info: info["point_cloud"].pop("sample_idx"), r"must hold point_cloud\.lidar_sequence"),
    (lambda info: info["point_cloud"].update(lidar_sequence="../x"), r"must stay within"),
    (lambda info: info["point_cloud"].update(sample_idx=77), r"0077\.npy"),
    (lambda info: info.clear(), r"must hold point_cloud"),
])  # fmt: skip
def test_a_broken_info_is_a_bad_frame(cfg: EasyDict, change: Any, message: str) -> None:
    change_infos(cfg, 2, change)
    with pytest.raises(DataError, match=message):
        dataset(cfg).load_sample(0)


@pytest.mark.parametrize("array", [
    np.zeros((5, 5), np.float32), np.zeros((5, 6), int), np.zeros(6, np.float32),
    np.full((5, 6), np.nan, np.float32),
])  # fmt: skip
def test_a_broken_point_file_is_named(cfg: EasyDict, array: np.ndarray) -> None:
    np.save(segment(cfg, 2) / "0000.npy", array)
    with pytest.raises(DataError, match=r"0000\.npy"):
        dataset(cfg).load_sample(0)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("SAMPLED_INTERVAL", {"train": 0, "test": 1}, "SAMPLED_INTERVAL"),
    ("POINTS_TANH_DIM", [5], "POINTS_TANH_DIM"),
    ("USE_SHARED_MEMORY", True, "USE_SHARED_MEMORY is not implemented"),
    ("PROCESSED_TAG", "x", "did you mean PROCESSED_DATA_TAG"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_errors(cfg: EasyDict, key: str, value: Any, message: str) -> None:
    cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        dataset(cfg)


def test_prepare_writes_openpcdets_infos_and_database(cfg: EasyDict) -> None:
    report = prepare_waymo(cfg, CLASSES, workers=2)
    root = Path(cfg.DATA_PATH)
    infos = pickle.loads((root / f"{TAG}_infos_train.pkl").read_bytes())
    assert report.frames == {"train": 10, "val": 5} and len(infos) == 10
    # of ten frames, every fourth has its vehicles in the database, and every second its pedestrians
    assert report.objects == {"Vehicle": 6, "Pedestrian": 5, "Cyclist": 10}
    database = pickle.loads((root / DATABASE).read_bytes())
    entry = database["Pedestrian"][0]
    assert set(entry) == {"name", "path", "sequence_name", "sample_idx", "gt_idx", "box3d_lidar",
                          "num_points_in_gt", "difficulty"}  # fmt: skip
    assert entry["num_points_in_gt"] == 10 and entry["box3d_lidar"].shape == (9,)
    assert entry["path"] == f"{TAG}_gt_database_train_sampled_1/{segment_name(0)}_0000_Pedestrian_1.bin"
    points = np.fromfile(root / entry["path"], np.float32).reshape(-1, 5)
    assert len(points) == 10 and np.abs(points[:, :3]).max() < 1
    assert not list(root.glob(".waymo_parts"))


def test_gt_sampling_pastes_what_prepare_wrote(cfg: EasyDict, root: Path) -> None:
    prepare_waymo(cfg, CLASSES)
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/waymo_dataset.yaml")
    cfg.DATA_AUGMENTOR = shipped.DATA_AUGMENTOR
    cfg.DATA_AUGMENTOR.AUG_CONFIG_LIST = cfg.DATA_AUGMENTOR.AUG_CONFIG_LIST[:1]
    frames = dataset(cfg, True)
    assert frames.data_augmentor is not None and frames.data_augmentor.steps[0].size == 18
    change_infos(cfg, 0, lambda info: info["annos"].update(
        {key: value[1:2] for key, value in info["annos"].items()}))  # fmt: skip
    sample = dataset(cfg, True)[0]
    assert sorted(sample["gt_boxes"][:, 7].tolist()) == [1, 2, 3]


def test_an_interrupted_prepare_continues_with_the_next_segment(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    read: list[Path] = []

    def stopped(path: Path, *rest: Any) -> np.ndarray:
        read.append(path)
        if path.parent.name == segment_name(1):
            raise StopError
        return original(path, *rest)

    original = prepare.read_points
    monkeypatch.setattr(prepare, "read_points", stopped)
    with pytest.raises(StopError):
        prepare_waymo(cfg, CLASSES, workers=1)
    assert not (Path(cfg.DATA_PATH) / DATABASE).exists()
    first, read[:] = len(read), []
    monkeypatch.setattr(
        prepare, "read_points", lambda path, *rest: read.append(path) or original(path, *rest)
    )
    assert prepare_waymo(cfg, CLASSES, workers=1).objects["Cyclist"] == 10
    assert first == 6 and {path.parent.name for path in read} == {segment_name(1)}


def test_prepare_names_frames_and_segments_that_it_leaves_out(cfg: EasyDict) -> None:
    (segment(cfg, 0) / "0001.npy").write_bytes(b"")
    (segment(cfg, 1) / f"{segment_name(1)}.pkl").write_bytes(b"")
    report = prepare_waymo(cfg, CLASSES)
    assert sorted(report.skipped) == [f"{segment_name(0)}_001", segment_name(1)]
    assert report.frames["train"] == 5 and report.objects["Cyclist"] == 4


def test_the_command_prepares_waymo_into_another_folder(
    cfg: EasyDict, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "waymo", "--cfg_file", str(root / "cfgs/dataset_configs/waymo_dataset.yaml"),
             "--set", "DATA_PATH", cfg.DATA_PATH, "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    assert "10 train, 5 val" in capsys.readouterr().out
    assert (tmp_path / "out" / DATABASE).is_file() and not (Path(cfg.DATA_PATH) / DATABASE).exists()


def test_a_segment_that_is_listed_with_and_without_its_suffix_comes_once(cfg: EasyDict) -> None:
    path = Path(cfg.DATA_PATH) / "ImageSets/train.txt"
    frames, names = len(dataset(cfg, True)), path.read_text().split()
    plain = [name.removesuffix(".tfrecord") for name in names]
    path.write_text("\n".join([*names, *plain, *(f"{name}.tfrecord" for name in plain)]))
    assert len(dataset(cfg, True)) == frames
