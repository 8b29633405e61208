"""Logs of Argoverse 2: splits from folders, several sweeps a frame, ground by the height map."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict

pytest.importorskip("pyarrow", reason="pyarrow is the extra av2")

import pyarrow
from argoverse2_maker import cloud, make_split
from pyarrow import feather

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.argoverse2 import Argoverse2Dataset, logs, prepare_argoverse2
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation import EVALUATORS

CLASSES = ["Vehicle", "Pedestrian", "Cyclist"]
POINTS = 143
"""of a sweep"""


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped config on two logs for training and one for the evaluation."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/argoverse2_dataset.yaml")
    data = tmp_path / "av2"
    make_split(data, "train", logs=2, advance=2.0)
    shipped.update(DATA_PATH=str(make_split(data, "val")), DATA_AUGMENTOR=[], INFO_ROOT=str(tmp_path))
    shipped.INTERVAL = {"train": 1, "test": 1}
    return shipped


@pytest.fixture
def log(cfg: EasyDict) -> Path:
    return Path(cfg.DATA_PATH) / "val" / "val-0"


def dataset(cfg: EasyDict, training: bool = False) -> Argoverse2Dataset:
    found = build_dataset(cfg, CLASSES, training)
    assert isinstance(found, Argoverse2Dataset)
    return found


def test_frames_are_the_sweeps_of_all_logs_of_the_split(cfg: EasyDict) -> None:
    frames = dataset(cfg, training=True)
    names = [frames.frame_name(index) for index in range(len(frames))]
    assert names == ["train-0_1000", "train-0_2000", "train-1_1000", "train-1_2000"]
    assert len(dataset(cfg)) == 2
    cfg.INTERVAL.train = 2
    assert len(dataset(cfg, training=True)) == 2


def test_older_sweeps_come_in_the_frame_of_the_newest_with_their_age(cfg: EasyDict) -> None:
    frames = dataset(cfg, training=True)
    assert len(frames.load_sample(0)["points"]) == POINTS  # the first of a log has none before it
    points = frames.load_sample(1)["points"]
    assert points.shape == (2 * POINTS, 5) and points.dtype == np.float32
    np.testing.assert_allclose(points[POINTS:, 0], points[:POINTS, 0] - 2.0, atol=1e-5)
    np.testing.assert_allclose(points[POINTS:, 1:4], points[:POINTS, 1:4], atol=1e-5)
    assert np.unique(points[:, 4]).tolist() == pytest.approx([0.0, 1e-6])
    cfg.MAX_SWEEPS = 1
    assert len(dataset(cfg, training=True).load_sample(1)["points"]) == POINTS


def test_boxes_have_a_point_and_the_names_of_the_class_map(cfg: EasyDict) -> None:
    assert dataset(cfg).load_sample(0)["gt_names"].tolist() == ["Vehicle", "Pedestrian", "BOLLARD"]
    cfg.MIN_POINTS = 5
    assert dataset(cfg).load_sample(0)["gt_names"].tolist() == ["Vehicle", "Pedestrian"]


def test_ground_is_what_the_height_map_says_and_older_points_have_no_class(cfg: EasyDict) -> None:
    frames = dataset(cfg, training=True)
    labels, (points, _) = frames.load_sample(1)["point_labels"], cloud()
    assert frames.semantic_class_names == ("ground", "Vehicle", "Pedestrian", "Cyclist", "other")
    assert (labels[POINTS:] == 255).all()
    np.testing.assert_array_equal(labels[:POINTS] == 0, points[:, 2] <= 1e-6)
    above = labels[:30][points[:30, 2] > 1e-6]
    assert len(above) > 10 and (above == 1).all()


def test_the_tables_of_a_log_are_read_once_for_its_frames(
    cfg: EasyDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    table = feather.read_table
    monkeypatch.setattr(feather, "read_table", lambda path: read.append(path.name) or table(path))
    frames = dataset(cfg, training=True)
    for index in (0, 1, 2, 3):
        frames.load_sample(index)
    assert read.count("annotations.feather") == read.count("city_SE3_egovehicle.feather") == 2  # two logs
    first = [frames.load_sample(index) for index in (2, 3)]
    assert [len(sample["gt_boxes"]) for sample in first] == [3, 3]
    assert read.count("annotations.feather") == 2


def test_a_table_that_was_replaced_is_read_again(cfg: EasyDict, log: Path) -> None:
    frames, path = dataset(cfg), log / "annotations.feather"
    assert len(frames.load_sample(0)["gt_boxes"]) == 3
    feather.write_feather(feather.read_table(path).slice(0, 1), path)
    assert len(frames.load_sample(0)["gt_boxes"]) == 1


def test_a_task_without_settings_has_no_labels(cfg: EasyDict) -> None:
    cfg.update(POINT_LABELS=False, LANE=None)
    frames = dataset(cfg)
    assert frames.labels == ("gt_boxes",) and frames.semantic_class_names == ()
    assert {"point_labels", "lane_map"}.isdisjoint(frames.load_sample(0))


def test_logs_of_a_test_split_have_lanes_alone(cfg: EasyDict, log: Path) -> None:
    (log / "annotations.feather").unlink()
    frames = dataset(cfg)
    assert frames.labels == ("lane_map",) and frames.ground_truth_annos() == [None, None]
    assert {"gt_boxes", "point_labels"}.isdisjoint(frames[0]) and "lane_map" in frames[0]
    cfg.DATA_SPLIT = {"train": "val", "test": "val"}
    with pytest.raises(DataError, match=r"none of the 1 logs of the training has an annotations\.feather"):
        dataset(cfg, training=True)


def test_lines_are_limited_to_the_longest(cfg: EasyDict) -> None:
    assert np.unique(dataset(cfg).load_sample(0)["lane_map"]).tolist() == [0, 1, 255]
    cfg.LANE.MAX_LINES = 1
    assert np.unique(dataset(cfg).load_sample(0)["lane_map"]).tolist() == [0, 255]


def test_the_truth_scores_itself(cfg: EasyDict) -> None:
    annos = [anno for anno in dataset(cfg).ground_truth_annos() if anno is not None]
    said = [{**anno, "score": np.ones(3)} for anno in annos]
    values = EVALUATORS.get("av2")(annos, said, CLASSES)[1]
    assert values["av2/mAP"] == values["av2/CDS"] == pytest.approx(1.0)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("DATA_SPLIT", {"train": "train"}, "DATA_SPLIT"),
    ("INTERVAL", {"train": 0, "test": 1}, "INTERVAL"),
    ("MAX_SWEEPS", 0, "MAX_SWEEPS must be a whole number, 1 or more"),
    ("LANE", {"CELL_SIZE": 0.7}, "must divide POINT_CLOUD_RANGE"),
    ("POINT_FEATURE_ENCODING", {"used_feature_list": ["x", "y", "z"], "src_feature_list": ["x", "y", "z"]},
     r"src_feature_list must be \[x, y, z, intensity, timestamp\]"),
    ("SWEEPS", {}, "SWEEPS is not a key"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_errors(cfg: EasyDict, key: str, value: Any, message: str) -> None:
    cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        dataset(cfg)


@pytest.mark.parametrize(("split", "message"), [
    ("none", r"none has no log with sensors/lidar"), ("../val", "must stay within"),
])  # fmt: skip
def test_a_split_without_logs_is_named(cfg: EasyDict, split: str, message: str) -> None:
    cfg.DATA_SPLIT = {"train": split, "test": split}
    with pytest.raises(DataError, match=message):
        dataset(cfg)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("val-0___img_Sim2_city.json", None, "has no height map.*POINT_LABELS: false"),
    ("val-0___img_Sim2_city.json", "{}", "not the place of a height map"),
    ("val-0_ground_height_surface____PIT.npy", "text", "not an array that numpy saved"),
])  # fmt: skip
def test_a_broken_height_map_is_named(
    cfg: EasyDict, log: Path, name: str, content: str | None, message: str
) -> None:
    path = log / "map" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        dataset(cfg).load_sample(0)


def test_prepare_writes_infos_and_a_database_of_all_sweeps(cfg: EasyDict, tmp_path: Path) -> None:
    report = prepare_argoverse2(cfg, CLASSES, workers=2)
    assert report.frames == {"train": 4, "test": 2} and report.objects["Vehicle"] == 4
    assert report.points["ground"] >= 4 * 101 and not report.skipped
    info = pickle.loads((tmp_path / "argoverse2_infos_train.pkl").read_bytes())[1]
    assert (info["log"], info["timestamp_ns"], info["sweeps"]) == ("train-0", 2000, [1000])
    entry = pickle.loads((tmp_path / "argoverse2_dbinfos_train.pkl").read_bytes())["Vehicle"][1]
    points = np.fromfile(tmp_path / entry["path"], "<f4").reshape(-1, 5)
    assert len(points) == entry["num_points_in_gt"] > 30 and len(np.unique(points[:, 4])) == 2


def test_an_interrupted_prepare_continues(cfg: EasyDict, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    load = Argoverse2Dataset.load_sample

    def stops(self: Argoverse2Dataset, index: int) -> Any:
        done.append(index)
        if len(done) == 3:
            raise KeyboardInterrupt
        return load(self, index)

    monkeypatch.setattr(logs.Argoverse2Dataset, "load_sample", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_argoverse2(cfg, CLASSES, workers=1)
    assert prepare_argoverse2(cfg, CLASSES, workers=1).frames == {"train": 4, "test": 2}
    assert len(done) == 3 + 4  # two frames were finished


def test_the_command_prepares(cfg: EasyDict, root: Path, tmp_path: Path) -> None:
    file = str(root / "cfgs/argoverse2_log_models/stage1_detect.yaml")
    sets = ["DATA_CONFIG.DATA_PATH", cfg.DATA_PATH, "DATA_CONFIG.INTERVAL.test", "2"]
    words = ["prepare", "argoverse2", "--cfg_file", file, "--out", str(tmp_path / "out"), "--set", *sets]
    assert main(words) == 0
    assert len(pickle.loads((tmp_path / "out/argoverse2_infos_test.pkl").read_bytes())) == 1


@pytest.fixture
def real_cfg(root: Path, real_data: Path) -> EasyDict:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/argoverse2_dataset.yaml")
    shipped.update(DATA_PATH=str(real_data / "av2"), INTERVAL={"train": 1, "test": 1})
    return shipped


def nearest(points: np.ndarray, others: np.ndarray) -> float:
    """Median distance of points to the nearest of others."""
    apart = points[:, None, :3] - others[None, :, :3]
    return float(np.median(np.sqrt((apart**2).sum(axis=2).min(axis=1))))


def test_a_real_sweep_that_is_moved_lies_on_the_next_one(real_cfg: EasyDict) -> None:
    """The vehicle drives 7 cm between the sweeps."""
    frames = dataset(real_cfg)
    points, still = frames.load_sample(1)["points"], frames.sweeps[0].points()
    old = points[:, 4] > 0
    assert np.unique(points[old, 4]).tolist() == pytest.approx([0.100196])
    above = np.flatnonzero((np.hypot(*still[:, :2].T) < 20) & (still[:, 2] > 0.5))
    some, newest = np.random.RandomState(0).choice(above, 80), points[~old]
    newest = newest[(np.hypot(*newest[:, :2].T) < 21) & (newest[:, 2] > 0.3)]
    assert nearest(points[old][some], newest) < 0.6 * nearest(still[some], newest)


def test_ground_by_the_height_map_is_that_of_the_flow_labels(real_cfg: EasyDict) -> None:
    frames = dataset(real_cfg)
    sweep = frames.sweeps[0]
    points = sweep.points()
    flags, ours = sweep.ground(len(points)), frames.ground(sweep, points)
    assert flags is not None and flags.sum() == 17374 and (flags != ours).sum() == 1


def test_labels_of_real_sweeps_score_themselves(real_cfg: EasyDict) -> None:
    annos = [anno for anno in dataset(real_cfg).ground_truth_annos() if anno is not None]
    said = []
    for anno in annos:
        seen = np.asarray(anno["num_points_in_gt"]) > 0
        said.append({"name": anno["name"][seen], "boxes_lidar": anno["boxes_lidar"][seen],
                     "score": np.linspace(1, 0.5, seen.sum())})  # fmt: skip
    values = EVALUATORS.get("av2")(annos, said, CLASSES)[1]
    assert values["av2/mAP"] == values["av2/CDS"] == pytest.approx(1.0)


@pytest.mark.parametrize(("file", "column", "values", "message"), [
    ("city_SE3_egovehicle", "qw", ["x", "x"], "the column qw must hold numbers; got 'x'"),
    ("city_SE3_egovehicle", "tx_m", [float("nan")] * 2, "the column tx_m must be finite"),
    ("city_SE3_egovehicle", "qx", [3.0, 3.0], "the quaternion at 1000 must have the length 1"),
    ("annotations", "tz_m", [[1.0]] * 6, "the column tz_m must hold numbers"),
    ("annotations", "category", [None] * 6, "the column category must hold texts"),
    ("annotations", "category", ["x" * 101] * 6, "the column category must hold texts of at most 100"),
    ("sensors/lidar/1000", "x", ["x"] * POINTS, "the column x must hold numbers"),
])  # fmt: skip
def test_a_column_of_another_kind_is_named(
    cfg: EasyDict, log: Path, file: str, column: str, values: list[Any], message: str
) -> None:
    path = log / f"{file}.feather"
    found = feather.read_table(path)
    place = found.column_names.index(column)
    feather.write_feather(found.set_column(place, column, pyarrow.array(values)), path)
    with pytest.raises(DataError, match=rf"{path.name}: {message}"):
        dataset(cfg).load_sample(0)


@pytest.mark.parametrize("place", [float("nan"), float("inf"), 1e10, 1e300])
def test_a_line_without_bounds_is_a_broken_map(cfg: EasyDict, log: Path, place: float) -> None:
    path = log / "map" / "log_map_archive_log.json"
    found = json.loads(path.read_text())
    found["lane_segments"]["1"]["left_lane_boundary"][0]["x"] = place
    path.write_text(json.dumps(found))
    with pytest.raises(
        DataError, match=r"not a vector map of Argoverse 2.*a line must be finite and at most"
    ):
        dataset(cfg).load_sample(0)


def test_a_boundary_without_points_is_no_line(cfg: EasyDict, log: Path) -> None:
    path = log / "map" / "log_map_archive_log.json"
    found = json.loads(path.read_text())
    for segment in found["lane_segments"].values():
        segment["right_lane_mark_type"], segment["right_lane_boundary"] = "SOLID_WHITE", []
    path.write_text(json.dumps(found))
    assert np.unique(dataset(cfg).load_sample(0)["lane_map"]).tolist() == [0, 1, 255]
