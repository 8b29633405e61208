"""`overfit`: three stages on few frames, each task compared with what the labels of the frames allow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pandaset_maker import make_pandaset

from pcdet_freeze.__main__ import main
from pcdet_freeze.cli.overfit import STAGES, Truth, compare, read_truth
from pcdet_freeze.engine.train_api import read_cfg
from pcdet_freeze.errors import ConfigError

TRUTH = Truth("Car", 34, 82.5, {"road": 9000, "car": 500, "cone": 499}, [-8, -4, -2, 8, 4, 4])
AP = "Car_3d_0.50/moderate_R40"
GOOD = {AP: 75.0, "segmentation/IoU/road": 95.0, "segmentation/IoU/car": 66.0, "lane/F1": 0.9}


def test_bars_are_a_share_of_the_truths_ap_and_classes_with_many_points() -> None:
    lines = compare(GOOD, TRUTH)
    assert [reached for _, reached in lines] == [True, True, True]
    assert "34 in x -8 to 8 m, y -4 to 4 m; the truth scores 82.5): 75, bar 74.25" in lines[0][0]
    assert "2 classes with 500 points or more: 80.5" in lines[1][0]  # the cone does not count


@pytest.mark.parametrize(("key", "value", "row"), [
    (AP, 74.0, 0), ("segmentation/IoU/car", 64.9, 1), ("lane/F1", 0.79, 2),
])  # fmt: skip
def test_a_bar_that_is_missed_is_named(key: str, value: float, row: int) -> None:
    lines = compare({**GOOD, key: value}, TRUTH)
    assert [reached for _, reached in lines] == [number != row for number in range(3)]
    assert "MISSED" in lines[row][0]


def test_a_task_without_a_figure_misses_its_bar() -> None:
    assert not any(reached for _, reached in compare({}, TRUTH))


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Words of --set: a tiny scene in a small range, and every box is kept, so that there are some."""
    return [
        "DATA_CONFIG.DATA_PATH", str(make_pandaset(tmp_path / "data")),
        "DATA_CONFIG.POINT_CLOUD_RANGE", "[-12.8, -12.8, -2, 12.8, 12.8, 4]",
        "MODEL.POST_PROCESSING.SCORE_THRESH", "0.0",
        "MODEL.POST_PROCESSING.NMS_CONFIG.NMS_POST_MAXSIZE", "40",
    ]  # fmt: skip


def test_the_truth_is_that_of_the_test_frames_in_range(small: list[str]) -> None:
    truth = read_truth(read_cfg("pandaset_models/stage3_lane.yaml", small), "Car")
    assert truth.boxes == 1 and truth.points["car"] == 30 and truth.points["stop_line"] == 0
    assert truth.classes == [] and truth.points["road"] > 300


def test_the_overlap_is_that_of_evaluation(small: list[str]) -> None:
    words = [*small, "CLASS_NAMES", "[Car, Cones]", "DATA_CONFIG.MIN_POINTS", "0"]
    stage = "pandaset_models/stage3_lane.yaml"
    cone = read_truth(read_cfg(stage, words), "Cones")  # a class that KITTI's benchmark does not have
    assert cone.boxes == 1 and "Cones_3d_0.50/moderate_R40" in cone.figures
    car = read_truth(read_cfg(stage, [*words, "EVALUATION", "{IOU: {Car: 0.6}}"]), "Car")
    assert "Car_3d_0.60/moderate_R40" in car.figures
    (line, reached), *_ = compare({**GOOD, "Car_3d_0.60/moderate_R40": 100.0}, car)
    assert reached and "Car AP 3D R40, IoU 0.6 (" in line


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A training is an error; returns the configs of those that began."""
    begun: list[Any] = []

    def train(cfg: Any, **_: Any) -> None:
        begun.append(cfg)
        raise ConfigError("no training here")

    monkeypatch.setattr("pcdet_freeze.cli.overfit.train", train)
    return begun


def test_the_class_is_checked_before_the_trainings(
    small: list[str], untrained: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--name", "Tram", "--output_dir", str(tmp_path), "--set", *small]
    assert main(["overfit", *words]) == 1 and untrained == []
    assert "--name must be one of CLASS_NAMES (Car, Pedestrian, Cyclist)" in capsys.readouterr().err


@pytest.mark.parametrize("models", ["my_models", "cfgs/pandaset_models", "pandaset_models"])
def test_only_the_runs_of_the_three_stages_are_deleted(
    models: str, small: list[str], untrained: list[Any], tmp_path: Path, root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "cfgs/pandaset_models", "my_models")
    group = Path(models).name
    old = [Path(group) / stage / "default/ckpt/old.pth" for stage in STAGES.values()]
    others = [Path(group) / "stage1_detect/tag/mine", Path(group) / "mine", Path("cfgs") / group / "mine"]
    for path in (*old, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert main(["overfit", "--models", models, "--output_dir", ".", "--set", *small]) == 1
    assert len(untrained) == 1 and not any(path.parents[1].exists() for path in old)
    assert all(path.is_file() for path in others) and len([*Path("my_models").glob("*.yaml")]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("source", ["small files", "real sweeps"])
def test_three_stages_leave_the_detections_as_they_were(
    small: list[str], source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if source == "real sweeps":
        small[1] = str(request.getfixturevalue("real_data") / "pandaset")
    words = ["--max_iters", "3", "--device", "cpu", "--output_dir", str(tmp_path), "--set", *small]
    assert main(["overfit", *words]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("detections, bit"))
    assert row.split()[4:] == ["the", "same"] * 2
    for stage in STAGES.values():
        folder = tmp_path / "pandaset_models" / stage / "default"
        scores = json.loads(next(folder.glob("eval/**/result.json")).read_text())
        assert AP in scores
    assert {"segmentation/mIoU", "segmentation/IoU/road", "lane/F1", "lane/chamfer_m"} <= scores.keys()
