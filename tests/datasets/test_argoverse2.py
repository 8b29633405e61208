"""Sweeps of Argoverse 2: boxes, point labels and lane maps in the vehicle's frame."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from easydict import EasyDict

pytest.importorskip("pyarrow", reason="pyarrow is the extra av2")

from argoverse2_maker import NAMES, STAMPS, cloud, make_log, write

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.argoverse2 import Argoverse2Sweeps
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation.kitti import get_official_eval_result
from pcdet_freeze.ops.boxes import points_in_boxes_mask

CLASSES = ["Car", "Pedestrian", "Cyclist"]


@pytest.fixture
def cfg(root: Path, tmp_path: Path) -> EasyDict:
    """The shipped config on the tiny log."""
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/argoverse2_sweeps.yaml")
    shipped.update(DATA_PATH=str(make_log(tmp_path)), SWEEPS={"train": NAMES[:1], "test": NAMES})
    return shipped


@pytest.fixture
def log(cfg: EasyDict) -> Path:
    return Path(cfg.DATA_PATH) / "log"


def dataset(cfg: EasyDict, training: bool = False) -> Argoverse2Sweeps:
    found = build_dataset(cfg, CLASSES, training)
    assert isinstance(found, Argoverse2Sweeps)
    return found


def test_boxes_are_those_of_the_sweep_with_enough_points(cfg: EasyDict) -> None:
    sample = dataset(cfg).load_sample(0)
    assert sample["gt_names"].tolist() == ["Car", "Pedestrian"]  # the bollard has two points
    np.testing.assert_allclose(sample["gt_boxes"][0], [10, 4, 0.5, 4, 2, 1.6, 0], atol=1e-6)
    assert sample["points"].dtype == np.float32 and np.unique(sample["points"][:, 3]) == np.float32(0.2)


def test_a_point_has_the_class_of_its_box_unless_it_is_ground(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    assert frames.semantic_class_names == ("ground", "Car", "Pedestrian", "Cyclist", "other")
    labels, ground = frames.load_sample(0)["point_labels"], cloud()[1]
    assert labels.tolist() == [1] * 30 + [2] * 10 + [4] * 2 + [0] * 101 and ground.sum() == 101


def test_sweeps_without_flow_labels_are_labelled_in_part(cfg: EasyDict) -> None:
    frames = dataset(cfg)
    batch = frames.collate_batch([frames[0], frames[1]])
    assert batch["has_point_labels"].tolist() == [True, False]
    assert batch["has_lane_map"].all() and batch["has_gt_boxes"].all()


def test_painted_boundaries_are_lines_of_the_map_from_left_to_right(cfg: EasyDict) -> None:
    lanes = dataset(cfg).load_sample(0)["lane_map"]
    assert lanes.shape == (160, 320)
    rows = {number: np.unique(np.nonzero(lanes == number)[0]) for number in np.unique(lanes) if number < 255}
    assert {number: -25.6 + 0.32 * (row.mean() + 0.5) for number, row in rows.items()} == pytest.approx(
        {0: 2.0, 1: -1.0}, abs=0.17
    )
    assert (lanes[rows[0]][:, 4:-4] == 0).any(axis=0).all()  # two pieces, one line without a gap


def test_unpainted_boundaries_are_included_if_configured(cfg: EasyDict) -> None:
    cfg.LANE.PAINTED_ONLY = False
    lanes = dataset(cfg).load_sample(0)["lane_map"]
    assert np.unique(lanes).tolist() == [0, 1, 2, 3, 4, 255]  # at 2, -1 (shared by two lanes), -4, -7, -10


def test_the_truth_scores_itself(cfg: EasyDict) -> None:
    annos = dataset(cfg).ground_truth_annos()
    assert [anno["difficulty"].tolist() for anno in annos] == [[0, 0, -1]] * 2
    said = [{**anno, "score": np.linspace(1, 0.5, 3)} for anno in annos]
    values = get_official_eval_result(annos, said, CLASSES)[1]
    assert values["Car_3d/easy_R40"] > 0


def test_an_epoch_of_training_repeats_the_sweeps_and_a_sample_is_not_shared(cfg: EasyDict) -> None:
    frames = dataset(cfg, training=True)
    assert len(frames) == 50 and len(dataset(cfg)) == 2
    frames.load_sample(0)["points"][:] = 0
    assert frames.load_sample(7)["points"].any()


@pytest.mark.parametrize(("key", "value", "message"), [
    ("SWEEPS", ["log/1000"], r"SWEEPS must be a section such as {train: "),
    ("SWEEPS", {"test": ["log"]}, "<log>/<timestamp in ns>"),
    ("CLASS_MAP", {"Car": "REGULAR_VEHICLE"}, r"CLASS_MAP\.Car must be a list .*write \[REGULAR_VEHICLE\]"),
    ("CLASS_MAP", {"ground": ["BOLLARD"]}, "without ground and other"),
    ("LANE", {"CELL_SIZE": 0.7}, "must divide POINT_CLOUD_RANGE"),
    ("LAN", {}, r"LAN is not a key .*did you mean LANE\?"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_errors(cfg: EasyDict, key: str, value: Any, message: str) -> None:
    cfg.pop(key, None)
    cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        dataset(cfg)


def test_a_sweep_that_is_not_there_is_named_with_its_path(cfg: EasyDict, log: Path) -> None:
    cfg.SWEEPS.test = ["log/3000"]
    with pytest.raises(DataError, match=rf"not there: {log}/sensors/lidar/3000.feather"):
        dataset(cfg)


def broken(log: Path, kind: str) -> None:
    if kind == "flow":
        write(log / "flow_labels.feather", is_ground_0=[True] * 9)
    elif kind == "pose":
        write(log / "city_SE3_egovehicle.feather", timestamp_ns=[5], qw=[1.0], qx=[0.0], qy=[0.0], qz=[0.0],
              tx_m=[0.0], ty_m=[0.0], tz_m=[0.0])  # fmt: skip
    elif kind == "column":
        write(log / "sensors/lidar" / f"{STAMPS[0]}.feather", x=[0.0], y=[0.0], z=[0.0])
    elif kind == "table":
        (log / "annotations.feather").write_bytes(b"ARROW1 and no more")
    elif kind == "map":
        (log / "map" / "log_map_archive_log.json").write_text('{"lane_segments": {"1": {}}}')
    else:
        (log / "annotations.feather").unlink()


@pytest.mark.parametrize(("kind", "message"), [
    ("flow", r"one row for each of the 143 points of 1000\.feather.*got 9"),
    ("pose", "has no pose at the sweep's time 1000"),
    ("column", "lacks the columns intensity; has x, y, z"),
    ("table", "annotations.feather: not a feather table"),
    ("map", "not a vector map of Argoverse 2"),
    ("gone", "annotations.feather: this table of Argoverse 2 is missing"),
])  # fmt: skip
def test_a_broken_file_is_an_error_that_names_it(cfg: EasyDict, log: Path, kind: str, message: str) -> None:
    frames = dataset(cfg)
    broken(log, kind)
    with pytest.raises(DataError, match=message):
        frames.load_sample(0)


def test_without_pyarrow_the_extra_is_named(cfg: EasyDict, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = dataset(cfg)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow.*\[av2\]"):
        frames.load_sample(0)


def test_boxes_of_a_real_sweep_hold_exactly_the_points_that_are_annotated(
    root: Path, real_data: Path
) -> None:
    shipped = cfg_from_yaml_file(root / "cfgs/dataset_configs/argoverse2_sweeps.yaml")
    shipped.DATA_PATH = str(real_data / "av2" / "val")
    frames = dataset(shipped)
    sample, truth = frames.load_sample(0), frames.sweeps[0].boxes()
    inside = points_in_boxes_mask(sample["points"][:, :3], truth.boxes, margin=0.0).sum(axis=1)
    np.testing.assert_array_equal(inside, truth.num_points)
    assert len(truth.boxes) == 81
    shares = np.bincount(sample["point_labels"], minlength=5) / len(sample["points"])
    assert shares[0] > 0.15 and shares[1] > 0.07 and (shares > 0).all()
    assert len(np.unique(sample["lane_map"])) == 5  # four painted lines in range
