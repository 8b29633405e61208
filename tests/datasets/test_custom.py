"""CustomDataset: a folder of one's own; formats of point files, columns by name, labels in part, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pypcd4
import pytest
from custom_maker import BOXES, COUNTS, LIMITS, make_custom, points_of
from easydict import EasyDict

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.custom import CustomDataset, prepare_custom
from pcdet_freeze.datasets.file_formats.files import read_pickle, write_pickle
from pcdet_freeze.errors import ConfigError, DataError

CLASSES = ["Vehicle", "Pedestrian", "Cyclist"]


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped data config of the last stage on a tiny folder, without augmentation."""
    shipped = cfg_from_yaml_file(root / "cfgs/custom_models/stage3_lane.yaml").DATA_CONFIG
    shipped.update(DATA_PATH=str(make_custom(tmp_path / "data")), POINT_CLOUD_RANGE=list(LIMITS))
    shipped.DATA_AUGMENTOR.AUG_CONFIG_LIST = []
    return shipped


@pytest.fixture
def data(cfg: EasyDict) -> Path:
    return Path(cfg.DATA_PATH)


@pytest.fixture
def frames(cfg: EasyDict) -> Callable[..., CustomDataset]:
    """frames(training=False) -> the folder, prepared anew."""

    def build(training: bool = False) -> CustomDataset:
        prepare_custom(cfg, CLASSES, workers=1)
        found = build_dataset(cfg, CLASSES, training)
        assert isinstance(found, CustomDataset)
        return found

    return build


Frames = Callable[..., CustomDataset]


def test_a_frame_has_points_boxes_classes_and_lanes(frames: Frames) -> None:
    found = frames(training=True)
    points, classes = points_of(0)
    sample = found.load_sample(0)
    np.testing.assert_array_equal(sample["points"], points)
    np.testing.assert_array_equal(sample["point_labels"], classes)
    assert sample["gt_names"].tolist() == ["Vehicle", "Pedestrian"]
    np.testing.assert_allclose(sample["gt_boxes"][0], [4, 2, -0.2, 4, 2, 1.6, 0], rtol=1e-6)
    assert np.unique(sample["lane_map"]).tolist() == [0, 1, 255] and sample["lane_map"].shape == (80, 80)
    assert found.labels == ("gt_boxes", "point_labels", "lane_map") and len(found) == 3


def test_splits_are_those_of_image_sets(frames: Frames) -> None:
    assert [frames().frame_name(index) for index in (0, 1)] == ["000001", "000002"]


def test_frames_without_a_label_file_are_labelled_in_part(data: Path, frames: Frames) -> None:
    for name in ("labels/000000.txt", "semantic/000001.npy", "lanes/000002.npy"):
        (data / name).unlink()
    found = frames(training=True)
    batch = found.collate_batch([found[index] for index in range(3)])
    assert batch["has_gt_boxes"].tolist() == [False, True, True]
    assert batch["has_point_labels"].tolist() == [True, False, True]
    assert batch["has_lane_map"].tolist() == [True, True, False]
    assert [anno is None for anno in found.ground_truth_annos()] == [True, False, False]


def test_an_empty_label_file_is_a_frame_without_objects(data: Path, frames: Frames) -> None:
    (data / "labels/000001.txt").write_text("\n")
    sample = frames().load_sample(0)
    assert sample["gt_boxes"].shape == (0, 7) and sample["gt_names"].shape == (0,)


POINTS = np.tile(points_of(0)[0][:3], (30, 1))  # other clouds as small as this one are not compressed


def table(points: np.ndarray, names: str) -> np.ndarray:
    """A structured array with the columns ``names``."""
    return np.rec.fromarrays(list(points.T), names=names)


def pcd(path: Path, encoding: Any) -> None:
    cloud: Any = pypcd4.PointCloud
    fields = ("x", "y", "z", "intensity")
    cloud.from_points(POINTS, fields, (np.float32,) * 4).save(path, encoding=encoding)
    assert f"DATA {encoding.value}\n".encode() in path.read_bytes()


def las(path: Path) -> None:
    laspy = pytest.importorskip("laspy", reason="laspy is the extra las")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales = [1e-6] * 3
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = POINTS[:, :3].astype(np.float64).T
    cloud.intensity = np.round(POINTS[:, 3] * 65535).astype(np.uint16)
    cloud.write(str(path))


FILES: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any]]] = {
    "float32 .npy": (".npy", lambda path: np.save(path, POINTS), {}),
    "float64 .npy": (".npy", lambda path: np.save(path, POINTS.astype(np.float64)), {}),
    "wider .npy": (".npy", lambda path: np.save(path, np.hstack([POINTS, POINTS])), {}),
    "columns in another order": (
        ".npy", lambda path: np.save(path, POINTS[:, [3, 1, 0, 2]]),
        {"FILE_COLUMNS": ["intensity", "y", "x", "z"]}),
    "structured .npy": (
        ".npy", lambda path: np.save(path, table(POINTS, "x,y,z,remission")),
        {"COLUMN_NAMES": {"intensity": "remission"}}),
    ".bin": (".bin", POINTS.tofile, {}),
    ".bin with a ring": (
        ".bin", lambda path: np.insert(POINTS, 3, 7, axis=1).tofile(path),
        {"FILE_COLUMNS": ["x", "y", "z", "ring", "intensity"]}),
    "ascii .pcd": (".pcd", lambda path: pcd(path, pypcd4.Encoding.ASCII), {}),
    "binary .pcd": (".pcd", lambda path: pcd(path, pypcd4.Encoding.BINARY), {}),
    "compressed .pcd": (".pcd", lambda path: pcd(path, pypcd4.Encoding.BINARY_COMPRESSED), {}),
    ".las": (".las", las, {"INTENSITY": {"SCALE": 65535}}),
    ".laz": (".laz", las, {"INTENSITY": {"SCALE": 65535}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_same_points(
    cfg: EasyDict, data: Path, frames: Frames, kind: str
) -> None:
    suffix, write, keys = FILES[kind]
    (data / "points/000001.npy").unlink()
    write(data / f"points/000001{suffix}")
    cfg.update(keys, SEMANTIC=None, ON_IMPLAUSIBLE="warn")
    (data / "ImageSets/train.txt").write_text("000001")
    (data / "ImageSets/val.txt").write_text("000001")
    points = frames().load_sample(0)["points"]
    assert points.dtype == np.float32
    rounded = suffix in (".las", ".laz") or kind == "ascii .pcd"
    np.testing.assert_allclose(points, POINTS, rtol=0, atol=1e-5 if rounded else 0)


def test_whole_numbers_are_divided_by_the_scale(cfg: EasyDict, data: Path, frames: Frames) -> None:
    cfg.update(SEMANTIC=None, INTENSITY={"SCALE": 255})
    rows = np.array([[1, 2, 0, 255], [-3, 4, -1, 51]] * 9, np.int16)
    np.save(data / "points/000001.npy", rows)
    expected = rows.astype(np.float32) / np.float32([1, 1, 1, 255])
    np.testing.assert_array_equal(frames().load_sample(0)["points"], expected)


def test_points_without_a_return_are_left_out_with_their_labels(data: Path, frames: Frames) -> None:
    points, classes = points_of(1)
    points[5, 2] = np.nan
    np.save(data / "points/000001.npy", points)
    sample = frames().load_sample(0)
    np.testing.assert_array_equal(sample["points"], np.delete(points, 5, axis=0))
    np.testing.assert_array_equal(sample["point_labels"], np.delete(classes, 5))


def test_a_box_with_few_points_is_left_out_by_min_points(cfg: EasyDict, frames: Frames) -> None:
    cfg.MIN_POINTS = COUNTS[1] + 1
    found = frames()
    assert found.load_sample(0)["gt_names"].tolist() == ["Vehicle"]
    assert found.ground_truth_annos()[0]["occluded"].tolist() == [0, 3]  # never counted


def test_objects_outside_the_range_are_not_counted(data: Path, frames: Frames) -> None:
    (data / "labels/000001.txt").write_text("40 0 0 4 2 1.6 0 Vehicle\n" + BOXES)
    assert frames().ground_truth_annos()[0]["occluded"].tolist() == [3, 0, 0]


def test_infos_of_openpcdet_are_read(cfg: EasyDict, data: Path, frames: Frames) -> None:
    frames()
    boxes = np.array([[4, 2, -0.2, 4, 2, 1.6, 0]], np.float32)
    names = np.array(["Vehicle", "DontCare"])
    annos = {"name": names, "gt_boxes_lidar": np.concatenate([boxes, boxes])}
    info = {"point_cloud": {"num_features": 4, "lidar_idx": "000002"}, "annos": annos}
    write_pickle(data / "custom_infos_val.pkl", [info])
    found = build_dataset(cfg, CLASSES, False)
    assert found[0]["gt_boxes"][:, 7].tolist() == [1] and found.frame_name(0) == "000002"
    cfg.MIN_POINTS = 5
    with pytest.raises(DataError, match=r"000002.*MIN_POINTS 5 needs infos with num_points_in_gt"):
        build_dataset(cfg, CLASSES, False)[0]


BROKEN: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda info: info.pop("point_cloud"), "point_cloud.lidar_idx"),
    (lambda info: info["annos"].pop("name"), "annos of its info are broken"),
    (lambda info: info["annos"].update(gt_boxes_lidar=np.zeros((2, 6))), "annos of its info are broken"),
    (lambda info: info["annos"].update(gt_boxes_lidar=np.zeros((3, 7))), "annos of its info are broken"),
    (lambda info: info.update(annos=5), "annos of its info are broken"),
    (lambda info: info["annos"]["gt_boxes_lidar"].__setitem__((0, 3), 0), "edges of 0.01"),
    (lambda info: info["point_cloud"].update(lidar_idx="../x"), "must stay within"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_entry_of_an_info_file_is_named(
    cfg: EasyDict, data: Path, frames: Frames, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    frames()
    infos = read_pickle(data / "custom_infos_val.pkl")
    change(infos[0])
    write_pickle(data / "custom_infos_val.pkl", infos)
    with pytest.raises(DataError, match=message):
        build_dataset(cfg, CLASSES, False)[0]


def test_missing_infos_name_the_command(cfg: EasyDict) -> None:
    with pytest.raises(DataError, match=r"custom_infos_val\.pkl.*prepare custom --cfg_file .*custom_dataset"):
        build_dataset(cfg, CLASSES, False)


def rename(folder: str, to: str) -> Callable[[Path], Any]:
    return lambda data: (data / folder).rename(data / to)


FOLDERS: list[tuple[Callable[[Path], Any], str]] = [
    (
        rename("points", "my_points"),
        r"points/ is not there; .* has ImageSets, .*my_points.*; rename my_points",
    ),
    (rename("points", "lidar"), r"points/ is not there; .* has ImageSets, labels, lanes, lidar"),
    (rename("semantic", "semantic_kitti"), "rename semantic_kitti to semantic"),
    (rename("lanes", "road_lanes"), "rename road_lanes to lanes.*SEMANTIC or LANE to null"),
    (rename("ImageSets", "imagesets"), r"train\.txt and val\.txt.*rename imagesets to ImageSets"),
    (lambda data: (data / "ImageSets/val.txt").unlink(), r"val\.txt \(one frame id a line"),
]


@pytest.mark.parametrize(("change", "message"), FOLDERS)
def test_a_missing_folder_is_an_error_that_names_the_one_beside(
    cfg: EasyDict, data: Path, change: Callable[[Path], Any], message: str
) -> None:
    change(data)
    with pytest.raises(DataError, match=message):
        prepare_custom(cfg, CLASSES)


@pytest.mark.parametrize(("keys", "message"), [
    ({"COLUMN_NAMES": {"i": "remission"}}, r"COLUMN_NAMES\.i must be a column"),
    ({"FILE_COLUMNS": ["x", "y", "z"]}, r"FILE_COLUMNS .* intensity is missing"),
    ({"FILE_COLUMNS": ["a", "y", "z"]}, r"FILE_COLUMNS must be a list of different names with x, y and z"),
    ({"INTENSITY": {"SCALE": 0}}, r"INTENSITY\.SCALE must be a number above 0"),
    ({"LANE": {"CELL_SIZE": 0.7}}, "must divide POINT_CLOUD_RANGE"),
    ({"MIN_POINTS": -1}, "MIN_POINTS"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_errors(cfg: EasyDict, keys: dict[str, Any], message: str) -> None:
    cfg.update(keys)
    with pytest.raises(ConfigError, match=message):
        prepare_custom(cfg, CLASSES)


def test_a_column_that_a_file_lacks_is_a_bad_frame(cfg: EasyDict, data: Path) -> None:
    np.save(data / "points/000000.npy", POINTS[:, :3])
    np.save(data / "points/000001.npy", table(POINTS, "x,y,z,remission"))
    skipped = prepare_custom(cfg, CLASSES).skipped
    assert "needs the column intensity; it has 3 columns" in skipped["000000"]
    assert "needs the column intensity; it has x, y, z, remission" in skipped["000001"]
    assert all("COLUMN_NAMES" in reason for reason in skipped.values())


def test_labels_that_no_frame_has_stop_a_training(cfg: EasyDict, data: Path, frames: Frames) -> None:
    for path in (data / "lanes").iterdir():
        path.unlink()
    assert "lane_map" not in frames().labels
    with pytest.raises(DataError, match=r"asks for lane_map, but none of the 3 frames"):
        frames(training=True)


def test_an_intensity_without_a_scale_is_noted(
    cfg: EasyDict, data: Path, frames: Frames, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        points = points_of(number)[0] * np.float32([1, 1, 1, 255])
        points[:, 3] = np.rint(points[:, 3])
        np.save(data / f"points/{number:06d}.npy", points)
    frames()
    assert "an intensity from 0 to 255" in caplog.text
    caplog.clear()
    cfg.INTENSITY = {"SCALE": 255}
    assert frames()[0]["points"][:, 3].max() <= 1 and "intensity" not in caplog.text
