"""One evaluation for all tasks that a model has: one pass, one table, one result.json, over any ranks."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_toy import TASKS_CFG, ThreeTaskFrames, ThreeTasks, three_task_loader
from two_processes import torchrun, worker

from pcdet_freeze.engine.testing.evaluator import eval_one_epoch
from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation import TASK_METRICS, MetricContext
from pcdet_freeze.evaluation.tasks import TaskMetric

LOGGER = logging.getLogger("pcdet_freeze.test")
WORKER = worker("evaluation_worker.py")


def evaluate(*tasks: str, batch_size: int = 3, without: dict[int, str] | None = None, **more: Any) -> Any:
    loader = three_task_loader(batch_size)
    if without is not None:
        loader.dataset.unlabelled = without
    return eval_one_epoch(TASKS_CFG, ThreeTasks(*tasks), loader, 1, LOGGER, **more)


def test_all_tasks_are_in_one_result_and_one_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = evaluate("boxes", "points", "lanes", result_dir=tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    table = caplog.text.partition("Results:\n")[2].splitlines()
    assert [line.split()[:2] for line in table[:4]] == [
        ["task", "metric"],
        ["detection", "Car_3d/moderate_R40"],
        ["lane", "F1"],
        ["lane", "precision"],
    ]
    assert any(line.split()[:2] == ["segmentation", "mIoU"] for line in table)
    assert {"recall/rcnn_0.5", "lane/chamfer_m", "segmentation/IoU/pole"} <= result.keys()


@pytest.mark.parametrize("scored", [("a table", {"own/mAP": 0.25}), None])
def test_scores_of_the_data_sets_own_tool_replace_those_of_the_config(
    scored: tuple[str, dict[str, float]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreeTaskFrames, "official_scores", lambda self, annos: scored, raising=False)
    found = evaluate("boxes", "points")
    assert ("own/mAP" in found) == (scored is not None) != ("Car_3d/moderate_R40" in found)
    assert "segmentation/mIoU" in found


def test_frames_labelled_in_part_count_for_the_tasks_that_they_are_labelled_for() -> None:
    dataset, metric = three_task_loader(1).dataset, TASK_METRICS.get("segmentation")
    kind = metric(MetricContext(dataset.semantic_class_names))
    frames = [dataset[i] for i in range(7) if i != 1]
    total = sum(
        kind.count(f["point_labels"], {"pred_point_labels": (f["points"][:, 2] % 3).astype(int)})["confusion"]
        for f in frames
    )
    found = evaluate("points")
    assert {key: found[key] for key in found if key.startswith("segmentation")} == kind.summarise(
        {"confusion": total}
    )


def test_cells_are_scored_with_the_points_of_their_own_frame() -> None:
    dataset = three_task_loader(1).dataset
    kind = TASK_METRICS.get("segmentation_bev")(
        MetricContext(dataset.semantic_class_names, tuple(map(float, dataset.point_cloud_range)))
    )
    total = 0
    for frame in (dataset[i] for i in range(7) if i != 1):
        found = {"pred_bev_labels": np.ones((4, 4), int), "points": np.pad(frame["points"], ((0, 0), (1, 0)))}
        total += kind.count(frame["point_labels"], found)["confusion"]
    assert evaluate("cells") | {"recall/rcnn_0.5": 0} == kind.summarise({"confusion": total}) | {
        "recall/rcnn_0.5": 0
    }


@pytest.mark.parametrize("task", ["boxes", "points", "lanes"])
def test_a_model_of_one_task_is_scored_for_that_one_as_in_the_whole(task: str) -> None:
    alone, whole = evaluate(task), evaluate("boxes", "points", "lanes")
    assert alone == {key: whole[key] for key in alone}
    prefixes = {"boxes": "Car", "points": "segmentation", "lanes": "lane"}
    assert {key.split("_")[0].split("/")[0] for key in alone} - {"recall"} == {prefixes[task]}


def test_the_batch_size_changes_nothing() -> None:
    assert evaluate("boxes", "points", "lanes", batch_size=7) == evaluate(
        "boxes", "points", "lanes", batch_size=1
    )


def test_two_ranks_score_as_one_process_without_loss_or_duplicates(tmp_path: Path) -> None:
    ran = torchrun(str(WORKER), str(tmp_path))
    assert ran.returncode == 0, ran.stderr[-2000:]
    one = evaluate("boxes", "points", "lanes")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == one
    annos = pickle.loads((tmp_path / "all" / "result.pkl").read_bytes())
    assert [anno["frame_id"] for anno in annos] == [f"{i:06d}" for i in range(7)]


def test_a_task_without_labels_is_named_and_the_others_are_scored(caplog: pytest.LogCaptureFixture) -> None:
    result = evaluate("boxes", "points", "lanes", without=dict.fromkeys(range(7), "point_labels"))
    assert "not scored: segmentation (no frame has point_labels)" in caplog.text
    assert "lane/F1" in result and not any(key.startswith("segmentation") for key in result)


def test_labels_for_no_task_at_all_are_an_error() -> None:
    with pytest.raises(DataError, match=r"none: lane \(no frame has lane_map\)"):
        evaluate("lanes", without=dict.fromkeys(range(7), "lane_map"))
    with pytest.raises(DataError, match=r"none: detection \(no frame has boxes\)"):
        evaluate("boxes", without=dict.fromkeys(range(7), "gt_boxes"))


def test_a_fourth_task_is_scored_after_one_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASK_METRICS, "_known", dict(TASK_METRICS._known))

    @TASK_METRICS.register_as("rows")
    class Rows(TaskMetric):
        """How many lanes were said."""

        prediction, label, per_point = "pred_lanes", "lane_map", False

        def count(self, truth: np.ndarray, prediction: Any) -> dict[str, Any]:
            return {"lanes": len(prediction["pred_lanes"])}

        def summarise(self, total: dict[str, Any]) -> dict[str, float]:
            return {"rows/lanes": total["lanes"]}

    assert evaluate("lanes")["rows/lanes"] == 6
