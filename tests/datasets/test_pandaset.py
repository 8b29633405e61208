"""PandaSet: points, boxes, point labels and lane lines of its sweeps, in the vehicle's frame."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict
from pandaset_maker import CUBOIDS, LINES, cuboid_columns, make_pandaset, write

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.pandaset import PandaSetDataset
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask

CLASSES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped config on the tiny scene."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/pandaset_dataset.yaml")
    shipped.update(DATA_PATH=str(make_pandaset(tmp_path)), SWEEPS={"train": ["002"], "test": ["002/00"]})
    return shipped


@pytest.fixture
def scene(cfg: EasyDict) -> Path:
    return Path(cfg.DATA_PATH) / "002"


def dataset(cfg: EasyDict, training: bool = False) -> PandaSetDataset:
    found = build_dataset(cfg, CLASSES, training)
    assert isinstance(found, PandaSetDataset)
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_boxes_and_points_are_in_the_frame_of_the_vehicle(cfg: EasyDict, scene: Path, version: int) -> None:
    make_pandaset(scene.parent, version=version)
    sample = dataset(cfg).load_sample(0)
    assert sample["gt_names"].tolist() == ["Car", "Pedestrian"]  # the cone has two points
    expected = [(*CUBOIDS[k][4], *CUBOIDS[k][5], CUBOIDS[k][6]) for k in (0, 1)]
    np.testing.assert_allclose(sample["gt_boxes"], expected, atol=1e-5)
    inside = points_in_boxes_mask(sample["points"][:, :3], sample["gt_boxes"], margin=0.0).sum(axis=1)
    assert inside.tolist() == [30, 10]
    assert sample["points"].dtype == np.float32 and sample["points"][0, 3] == np.float32(0.2)


def test_points_and_boxes_are_those_of_the_sensors(cfg: EasyDict) -> None:
    spinning = dataset(cfg).load_sample(0)
    cfg.SENSORS = [1]
    forward = dataset(cfg).load_sample(0)
    assert forward["gt_names"].tolist() == ["Car"] and len(forward["points"]) == 42
    cfg.SENSORS = [0, 1]
    both = dataset(cfg).load_sample(0)
    assert len(both["points"]) == len(spinning["points"]) + len(forward["points"])
    assert len(both["point_labels"]) == len(both["points"])


def test_an_object_with_a_cuboid_for_each_sensor_comes_once(cfg: EasyDict) -> None:
    cfg.update(SENSORS=[0, 1], MIN_POINTS=0)
    names = dataset(cfg).load_sample(0)["gt_names"].tolist()
    assert names == ["Car", "Pedestrian", "Car", "Cones"]
    cfg.SENSORS = [1, 0]  # the forward sensor's cuboid of the pedestrian is kept instead
    assert dataset(cfg).load_sample(0)["gt_boxes"][1, 0] == np.float32(6.4)


def test_point_labels_are_the_classes_of_the_label_map(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    names = np.array(frames.semantic_class_names)[frames.load_sample(0)["point_labels"]]
    found, counts = np.unique(names, return_counts=True)
    assert dict(zip(found.tolist(), counts.tolist(), strict=True)) == {
        "car": 30, "lane_line": 30, "pedestrian": 12, "road": 400, "stop_line": 10}  # fmt: skip


def test_lane_lines_run_from_left_to_right_through_the_points_of_both_sensors(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    lines = frames.lane_lines(0)
    assert lines is not None and [round(float(line[:, 1].mean()), 1) for line in lines] == list(LINES)
    assert all(line[0, 0] < -14 and line[-1, 0] > 14 for line in lines)
    lanes = frames.load_sample(0)["lane_map"]
    assert lanes.shape == (160, 320) and np.unique(lanes).tolist() == [0, 1, 255]
    columns = slice(int((51.2 - 14) / 0.32), int((51.2 + 14) / 0.32))
    assert (lanes[:, columns] == 0).any(axis=0).all()  # no gaps


def test_a_sweep_without_point_labels_is_labelled_in_part(cfg: EasyDict, scene: Path) -> None:
    (scene / "annotations/semseg/01.pkl.gz").unlink()
    frames = dataset(cfg, training=True)
    batch = frames.collate_batch([frames[0], frames[1]])
    assert batch["has_gt_boxes"].tolist() == [True, True]
    assert batch["has_point_labels"].tolist() == batch["has_lane_map"].tolist() == [True, False]
    assert frames.lane_lines(1) is None


def test_a_task_without_settings_has_no_labels(cfg: EasyDict) -> None:
    cfg.update(SEMANTIC=None, LANE=None)
    frames = dataset(cfg)
    assert frames.labels == ("gt_boxes",) and frames.lane_lines(0) is None
    assert not {"point_labels", "lane_map"} & set(frames.load_sample(0))


def test_labels_that_no_training_sweep_has_are_an_error(cfg: EasyDict, scene: Path) -> None:
    for path in (scene / "annotations/semseg").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"asks for point_labels, but none of the 2 training sweeps"):
        dataset(cfg, training=True)


def test_what_counts_in_an_evaluation_has_enough_points_and_lies_in_range(cfg: EasyDict) -> None:
    cfg.POINT_CLOUD_RANGE = [-51.2, -25.6, -2, 8, 25.6, 4]
    (anno,) = dataset(cfg).ground_truth_annos()
    assert anno is not None and anno["name"].tolist() == ["Car", "Pedestrian", "Cones"]
    assert anno["difficulty"].tolist() == [-1, 0, -1] and anno["num_points_in_gt"].tolist() == [30, 10, 2]


def test_an_epoch_repeats_the_sweeps_and_a_sample_is_not_shared(cfg: EasyDict) -> None:
    cfg.REPEAT = 3
    frames = dataset(cfg, training=True)
    assert len(frames) == 6 and len(dataset(cfg)) == 1
    frames.load_sample(0)["points"][:] = 0
    assert frames.load_sample(2)["points"].any()


@pytest.mark.parametrize(("key", "value", "message"), [
    ("SWEEPS", {"train": ["002"], "test": ["002/first"]}, "<scene> or <scene>/<sweep>"),
    ("SWEEPS", {"train": ["002"], "test": ["002/\u00b2"]}, "<scene> or <scene>/<sweep>"),
    ("SWEEPS", {"train": ["002"], "test": ["002/\u0660"]}, "<scene> or <scene>/<sweep>"),
    ("SWEEPS", {"train": ["002"], "test": []}, "a list of scenes"),
    ("SENSORS", [2], "SENSORS"),
    ("SENSORS", [], "0 .spinning. and 1 .forward."),
    ("CLASS_MAP", {"Car": ["Car"], "Truck": ["Car"]}, "each in one list"),
    ("LANE", {"CELL_SIZE": 0.7}, "must divide POINT_CLOUD_RANGE"),
    ("SEMANTIC", {"CLASSES": ["road"]}, r"SEMANTIC\.LABEL_MAP is required"),
    ("SENSOR", [0], "did you mean SENSORS"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_errors(cfg: EasyDict, key: str, value: Any, message: str) -> None:
    cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        dataset(cfg)


@pytest.mark.parametrize(("name", "message"), [
    ("002/07", "not there: .*002/lidar/07.pkl.gz"),
    ("003", "not there: .*003/lidar/00.pkl.gz"),
    ("../002", "must stay within"),
])  # fmt: skip
def test_a_sweep_that_is_not_there_is_named_with_its_path(cfg: EasyDict, name: str, message: str) -> None:
    cfg.SWEEPS.test = [name]
    with pytest.raises(DataError, match=message):
        dataset(cfg)


def test_files_that_are_no_sweeps_are_left_out(cfg: EasyDict, scene: Path) -> None:
    for name in ("\u00b2", "notes"):
        (scene / f"lidar/{name}.pkl.gz").write_bytes(b"")
    assert [sweep.number for sweep in dataset(cfg, training=True).sweeps] == [0, 1]


def broken(scene: Path, kind: str) -> None:
    lidar, cuboids = scene / "lidar/00.pkl.gz", scene / "annotations/cuboids/00.pkl.gz"
    semseg = scene / "annotations/semseg/00.pkl.gz"
    if kind == "cut":
        lidar.write_bytes(lidar.read_bytes()[:-100])
    elif kind == "not gzip":
        lidar.write_bytes(gzip.decompress(lidar.read_bytes()))
    elif kind == "not a frame":
        lidar.write_bytes(gzip.compress(b"cos\nsystem\n(S'true'\ntR."))
    elif kind == "column":
        write(lidar, x=[0.0], y=[0.0], z=[0.0], d=[0])
    elif kind == "NaN":
        write(cuboids, **{**cuboid_columns(), "yaw": np.full(len(CUBOIDS), np.nan)})
    elif kind == "label":
        write(cuboids, **{**cuboid_columns(), "label": ["x" * 1000] * len(CUBOIDS)})
    elif kind == "rows":
        write(semseg, **{"class": np.full(9, 7)})
    elif kind == "class":
        write(semseg, **{"class": np.full(524, 99)})
    elif kind in ("points", "shared text"):
        rows = 2_000_001 if kind == "points" else 2_001
        shared = np.zeros(rows, np.int8) if kind == "points" else np.full(rows, "x" * 100, object)
        names = ("x", "y", "z", "i", "d") if kind == "points" else cuboid_columns()
        write(lidar if kind == "points" else cuboids, **dict.fromkeys(names, shared))
    elif kind == "pose":
        (scene / "lidar/poses.json").write_text(json.dumps([]))
    else:
        (scene / "lidar/poses.json").write_text("{")


@pytest.mark.parametrize(("kind", "message"), [
    ("cut", r"lidar/00.pkl.gz: a gzip file is expected, but cannot be read"),
    ("not gzip", r"lidar/00.pkl.gz: a gzip file is expected"),
    ("not a frame", r"lidar/00.pkl.gz: not a pickled data frame .*os.system"),
    ("column", r"lidar/00.pkl.gz: a table must have the columns i; has d, x, y, z"),
    ("NaN", r"cuboids/00.pkl.gz: the column yaw must be finite"),
    ("label", r"cuboids/00.pkl.gz: the column label must hold texts of at most 100"),
    ("rows", r"semseg/00.pkl.gz: .* each of the 524 points .* got 9 rows"),
    ("class", r"semseg/00.pkl.gz: labels must be values that .*LABEL_MAP lists; got 99"),
    ("points", r"lidar/00.pkl.gz: .* at most 2000000 rows; .* 2000001"),
    ("shared text", r"cuboids/00.pkl.gz: .* at most 2000 rows; .* 2001"),
    ("pose", r"poses.json: must hold position .* of sweep 0"),
    ("json", r"poses.json: not a JSON file"),
])  # fmt: skip
def test_a_broken_file_is_an_error_that_names_it(cfg: EasyDict, scene: Path, kind: str, message: str) -> None:
    frames = dataset(cfg)
    broken(scene, kind)
    with pytest.raises(DataError, match=message):
        frames.load_sample(0)


@pytest.mark.parametrize("name", [
    "x", "d", "class", "yaw", "position.x", "dimensions.y", "cuboids.sensor_id",
    "uuid", "label", "cuboids.sibling_id",
])  # fmt: skip
def test_a_column_of_the_wrong_kind_is_named(cfg: EasyDict, scene: Path, name: str) -> None:
    frames, points = dataset(cfg), len(dataset(cfg).sweeps[0].cloud().points)
    tables: dict[str, dict[str, Any]] = {
        "lidar": dict.fromkeys(("x", "y", "z", "i", "d"), np.zeros(points)),
        "annotations/semseg": {"class": np.full(points, 7)},
        "annotations/cuboids": cuboid_columns(),
    }
    (folder,) = (folder for folder, columns in tables.items() if name in columns)
    rows, is_text = len(tables[folder][name]), isinstance(tables[folder][name], list)
    tables[folder][name] = np.ones(rows) if is_text else ["1"] * rows
    write(scene / folder / "00.pkl.gz", **tables[folder])
    kind = "texts" if is_text else "numbers"
    with pytest.raises(DataError, match=rf"{folder}/00.pkl.gz: the column {name} must hold {kind}"):
        frames.load_sample(0)


def test_a_table_without_rows_has_no_kinds(cfg: EasyDict, scene: Path) -> None:
    write(scene / "annotations/cuboids/00.pkl.gz", **dict.fromkeys(cuboid_columns(), np.array([], object)))
    sample = dataset(cfg).load_sample(0)
    assert sample["gt_boxes"].shape == (0, 7) and sample["gt_names"].shape == (0,)


COUNTS = {
    "points": ([106169, 166768], [106183, 166782], [106193, 165537]),
    "cuboids": (91, 92, 92),
    "in boxes": (22038, 21988, 22171),
    "in cars": (16979, 16925, 17094),
    "empty": (6, 6, 7),
    "lane points": ([395, 1460], [397, 1466], [393, 1446]),
}
"""of sweeps 00, 01, 02 of scene 002; two numbers: of the spinning sensor, of both"""


@pytest.fixture
def real(root: Path, real_data: Path) -> EasyDict:
    """The shipped config on the real sweeps."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/pandaset_dataset.yaml")
    shipped.DATA_PATH = str(real_data / "pandaset")
    if not Path(shipped.DATA_PATH).is_dir():
        pytest.skip(f"real sweeps not found at {shipped.DATA_PATH}")
    return shipped


@pytest.mark.parametrize("number", [0, 1, 2])
def test_real_sweeps_have_the_counts_that_are_known(real: EasyDict, number: int) -> None:
    real.SWEEPS.test = [f"002/{number:02d}"]
    sweep = dataset(real).sweeps[0]
    cloud = sweep.cloud()
    found, classes = sweep.cuboids(cloud, [0]), sweep.classes(len(cloud.points))
    assert found is not None and classes is not None
    spinning = cloud.sensors == 0
    cars = found.categories == "Car"
    figures = {
        "points": [int(spinning.sum()), len(cloud.points)],
        "cuboids": len(found.boxes),
        "in boxes": found.num_points.sum(),
        "in cars": found.num_points[cars].sum(),
        "empty": (found.num_points == 0).sum(),
        "lane points": [int((classes[spinning] == 8).sum()), int((classes == 8).sum())],
    }
    assert figures == {key: values[number] for key, values in COUNTS.items()}
    assert abs(np.median(cloud.points[classes == 7, 2]) + 0.28) < 0.02


def test_a_real_sweep_has_lines_near_its_lane_points(real: EasyDict) -> None:
    frames = dataset(real)
    lines = frames.lane_lines(0)
    assert lines is not None and len(lines) == 6
    assert np.unique(frames.load_sample(0)["lane_map"]).tolist() == [*range(6), 255]
