"""The table of before and after."""

from __future__ import annotations

from html_checks import Page

from pcdet_freeze.evaluation import table
from pcdet_freeze.report.forgetting import draw_forgetting, lines_of, shown, task_of
from pcdet_freeze.report.record import RunRecord, Task

AP, MIOU = "Car_3d/moderate_R40", "segmentation/mIoU"


def record(state: str = "identical", **fields: object) -> RunRecord:
    tasks = [Task("detection", ["dense_head"], state, ["vfe"]), Task("segmentation", ["segment_head"])]
    return RunRecord(tasks=tasks, after={AP: 80.0, MIOU: 60.0}, **fields)  # type: ignore[arg-type]


def test_identical_outputs_give_the_metrics_of_the_start_without_a_measurement() -> None:
    boxes, classes = lines_of(record())
    assert (boxes.task, boxes.before, boxes.proven, boxes.change) == ("detection", 80.0, True, 0.0)
    assert (classes.task, classes.before, classes.change) == ("segmentation", None, None)


def test_a_measured_start_is_shown_even_where_it_could_be_proven() -> None:
    boxes, classes = lines_of(record(before={AP: 79.5, MIOU: 10.0}))
    assert (boxes.before, boxes.proven, boxes.change) == (79.5, False, 0.5)
    assert classes.change == 50.0


def test_outputs_that_drifted_prove_nothing() -> None:
    assert [line.before for line in lines_of(record("drift"))] == [None, None]


def test_the_verdicts_are_in_words_with_the_modules_that_fed_a_drift() -> None:
    drift = {"dense_head": {"verdict": "drift", "relative_difference": {"a": 0.031, "b": None}}}
    found = Page(draw_forgetting(record("drift", drift=drift)))
    assert found.faults == [] and "vfe trained: its outputs drifted by 3.1e-02" in found.text
    assert "identical, bit for bit" in Page(draw_forgetting(record())).text
    assert Page(draw_forgetting(record("CHANGED"))).count("span", class_="bad") == 1


def test_of_kittis_figures_only_the_moderate_ones_are_shown() -> None:
    keys = [AP, "Car_3d/easy_R40", "Car_bev/moderate_R40", "Car_aos/hard", "recall/roi_0.3", MIOU]
    assert shown(keys) == [AP, MIOU]
    assert shown(["mAP", "NDS"]) == ["mAP", "NDS"]


def test_the_row_of_an_ap_names_its_iou_as_the_table_of_the_log_does() -> None:
    metrics = {AP: 80.0, "Car_3d_0.50/moderate_R40": 80.0, "Car_3d_0.30/moderate_R40": 90.0, MIOU: 60.0}
    found = [line.metric for line in lines_of(RunRecord(after=metrics))]
    assert found == [f"{AP} at IoU 0.50", MIOU]
    assert [line.metric for line in lines_of(RunRecord(before=metrics))] == found
    assert all(f"  {name}  " in table(metrics, {}) for name in found[:1])


def test_a_run_without_evaluation_says_how_to_have_one() -> None:
    assert "--num_epochs_to_eval 1" in Page(draw_forgetting(RunRecord())).text


def test_a_metric_belongs_to_the_task_that_its_name_begins_with() -> None:
    tasks = record().tasks
    keys = {
        "segmentation_bev/mIoU": "segmentation",
        MIOU: "segmentation",
        AP: "detection",
        "NDS": "detection",
    }
    assert {key: task_of(key, tasks) for key in keys} == keys
