"""`overfit`: three stages on few frames, each task compared with what the labels of the frames allow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pandaset_maker import make_pandaset

from pcdet_freeze.__main__ import main
from pcdet_freeze.cli.overfit import STAGES, Truth, compare, read_truth
from pcdet_freeze.engine.train_api import read_cfg

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
