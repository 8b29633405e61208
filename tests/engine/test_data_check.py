"""`check-data`: data with one fault give exactly that finding, in numbers; sound data give none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checked_frames import CheckedFrames, checked_cfg, report_of
from concat_sets import joined

from pcdet_freeze.datasets.checks.frame_survey import FrameSurvey, survey_frame
from pcdet_freeze.engine.data_check.expected import (
    Expected,
    columns_of,
    expected_of,
    learned_labels,
    trained_classes,
)
from pcdet_freeze.engine.data_check.read import survey_all, survey_some
from pcdet_freeze.engine.data_check.report import as_text, judge, to_plain, worst_frames
from pcdet_freeze.errors import DataError


def kinds(report: Any) -> dict[str, str]:
    return {finding.kind: finding.level for finding in report.findings}


def test_a_sound_data_set_gives_no_finding() -> None:
    report = report_of()
    assert report.findings == [] and not report.pointless
    assert "Nothing found" in as_text(report)


def move(axis: int, by: float) -> Any:
    """Move the cars and their points."""

    def change(index: int, sample: dict[str, Any]) -> None:
        sample["gt_boxes"][:2, axis] += by
        sample["points"][250:290, axis] += by

    return change


def broken(index: int, sample: dict[str, Any]) -> None:
    if index == 4:
        raise DataError("frame 4 is cut off")


def all_broken(index: int, sample: dict[str, Any]) -> None:
    raise OSError("no disk")


def rename(index: int, sample: dict[str, Any]) -> None:
    sample["gt_names"][:] = "Car"


def tram(index: int, sample: dict[str, Any]) -> None:
    sample["gt_boxes"] = np.concatenate([sample["gt_boxes"], sample["gt_boxes"][:1]])
    sample["gt_names"] = np.array([*sample["gt_names"], "Tram"])


def without(key: str) -> Any:
    return lambda index, sample: sample.pop(key)


def put(key: str, value: int) -> Any:
    def change(index: int, sample: dict[str, Any]) -> None:
        sample[key][:] = value

    return change


def no_intensity(index: int, sample: dict[str, Any]) -> None:
    sample["points"][:, 3] = 0


def intensity_of_a_byte(index: int, sample: dict[str, Any]) -> None:
    sample["points"][:, 3] *= 255


def more_points(sample: dict[str, Any], xy: np.ndarray) -> None:
    more = np.column_stack([xy, np.full(len(xy), -1.85), np.linspace(0, 1, len(xy))])
    sample["points"] = np.concatenate([sample["points"], more]).astype(np.float32)
    sample["point_labels"] = np.concatenate([sample["point_labels"], np.zeros(len(xy), np.int64)])


def far_points(index: int, sample: dict[str, Any]) -> None:
    more_points(sample, np.full((40_000, 2), -40.0))


def full_grid(index: int, sample: dict[str, Any]) -> None:
    cells = np.meshgrid(np.arange(0.25, 16, 0.5), np.arange(-7.75, 8, 0.5))
    more_points(sample, np.stack(cells, axis=-1).reshape(-1, 2))


def empty(index: int, sample: dict[str, Any]) -> None:
    sample["points"][290:, :2] = (1.0, 7.0)


def few(index: int, sample: dict[str, Any]) -> None:
    sample["points"][293:, :2] = (1.0, 7.0)


def long_cars(index: int, sample: dict[str, Any]) -> None:
    sample["gt_boxes"][:2, 3:6] = (12.0, 3.0, 1.6)


FAULTS = [
    ("bad_files", "warning", broken, ["1 of 20 frames", "4", "frame 4 is cut off"]),
    ("bad_files", "error", all_broken, ["20 of 20 frames", "OSError: no disk"]),
    ("missing_labels", "error", without("lane_map"), ["lane_map", "none of 20 frames"]),
    ("points_in_range", "error", far_points, ["0.7% of 806000 points"]),
    ("column_range", "warning", no_intensity, ["intensity is 0 in all points"]),
    ("boxes_outside", "error", move(2, 4.0), [
        "40 of 40 boxes of class Car", "in z (they are at 3.0 m, the range ends at 1.0)"]),
    ("boxes_outside", "error", move(0, -20.0), [
        "in x (they are at -16.0 to -12.0 m, the range begins at 0.0)"]),
    ("empty_boxes", "error", empty, ["20 of 20 boxes of class Pedestrian in range hold no point"]),
    ("few_points", "warning", few, ["20 boxes of class Pedestrian", "hold 3 points"]),
    ("anchor_size", "warning", long_cars, ["12.0 x 3.0 x 1.6 m", "3.9 x 1.6 x 1.56", "40 of 40", "0.6"]),
    ("anchor_height", "warning", move(2, 1.5), ["class Car", "z = -0.3 m", "-1.8 m"]),
    ("too_many_voxels", "warning", full_grid, ["20 of 20 frames", "(400)", "up to 1024", "61% are dropped"]),
    ("class_without_labels", "warning", rename, ["Pedestrian", "Car 60"]),
    ("unnamed_class", "note", tram, ["20 of 80 boxes", "Tram 20"]),
    ("ignored_points", "error", put("point_labels", 255), ["100.0% of the 6000"]),
    ("point_class_without_labels", "note", put("point_labels", 0), ["car, other", "1 of 3"]),
    ("empty_lane_maps", "error", put("lane_map", 255), ["20 of 20 lane maps"]),
    ("lane_numbers", "error", put("lane_map", 7), ["up to 7", "NUM_LANES is 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "level", "change", "words"), FAULTS)
def test_data_with_one_fault_give_that_finding(kind: str, level: str, change: Any, words: list[str]) -> None:
    (finding, *others) = report_of(change).findings
    assert (finding.kind, finding.level) == (kind, level)
    assert all(word in finding.text for word in words)
    # MAX_NUMBER_OF_VOXELS is one of each mode
    assert {other.kind for other in others} <= {"too_many_voxels"} & {kind}


def test_a_part_of_a_class_outside_is_counted_as_in_the_labels() -> None:
    def change(index: int, sample: dict[str, Any]) -> None:
        if index:
            move(2, 4.0)(index, sample)

    (finding,) = report_of(change).findings
    assert finding.level == "error"
    assert finding.text.startswith("38 of 40 boxes of class Car lie outside POINT_CLOUD_RANGE in z")


def test_boats_above_the_range_are_counted_with_their_height() -> None:
    boxes = np.tile([50.0, 0.0, 3.1, 38.0, 9.0, 15.0, 0.0], (640, 1))
    boxes[1:, 2] = np.linspace(3.1, 3.9, 639)
    boxes[0, 2] = 0.5
    limits = np.array([0.0, -40.0, -3.0, 70.4, 40.0, 1.0])
    frame = FrameSurvey(0, "0", boxes=boxes, names=np.array(["boat"] * 640), box_points=np.full(640, 99))
    (finding,) = judge([frame], Expected(("boat",), limits, frozenset({"gt_boxes"}))).findings
    assert finding.level == "error" and finding.text == (
        "639 of 640 boxes of class boat lie outside POINT_CLOUD_RANGE in z (they are at 3.1 to 3.9 m, the "
        "range ends at 1.0)"
    )


def test_the_intensity_is_compared_with_what_the_pretrained_checkpoint_saw() -> None:
    columns = report_of().columns
    assert report_of(**columns).findings == []
    (finding,) = report_of(intensity_of_a_byte, **columns).findings
    assert finding.kind == "column_range" and "pretrained checkpoint saw 0" in finding.text
    assert columns_of({"intensity": list(columns["intensity"])}) == columns


@pytest.mark.parametrize("stored", [None, [], {"a": 3}, {"a": [1, 2]}, {"a": [0, 1, 2, 3, float("nan")]}])
def test_damaged_columns_of_a_checkpoint_are_left_out(stored: Any) -> None:
    assert columns_of(stored) == {}


def test_labels_that_only_frozen_heads_read_are_not_judged() -> None:
    cfg = checked_cfg()
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = ["vfe", "dense_head", "segment_head"]
    assert learned_labels(cfg.MODEL) == {"lane_map"}
    assert report_of(move(2, 4.0), cfg).findings == []


def test_of_several_heads_the_classes_of_trainable_ones_are_judged() -> None:
    cfg = checked_cfg()
    head = cfg.MODEL.pop("DENSE_HEAD")
    cfg.MODEL.DENSE_HEADS = {
        "dense_head": {**head, "CLASS_NAMES": ["Car"]},
        "walker_head": {**head, "CLASS_NAMES": ["Pedestrian"]},
    }
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = ["dense_head"]
    assert trained_classes(cfg.MODEL, cfg.CLASS_NAMES) == ("Pedestrian",)
    assert report_of(move(2, 4.0), cfg).findings == []  # the cars are those of the frozen head
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = ["walker_head"]
    assert kinds(report_of(move(2, 4.0), cfg)) == {"boxes_outside": "error"}


def test_a_head_that_a_config_takes_from_its_base_does_not_count() -> None:
    cfg = checked_cfg()
    head = cfg.MODEL.pop("DENSE_HEAD")
    cfg.MODEL.DENSE_HEADS = {"dense_head": {**head, "CLASS_NAMES": ["Car"]}, "walker_head": None}
    assert trained_classes(cfg.MODEL, cfg.CLASS_NAMES) == ("Car",)
    assert kinds(report_of(move(2, 4.0), cfg)) == {"boxes_outside": "error"}


def test_a_frozen_second_stage_learns_no_class() -> None:
    cfg = checked_cfg()
    cfg.MODEL.ROI_HEAD = {"NAME": "any"}
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = ["vfe", "dense_head", "roi_head"]
    assert trained_classes(cfg.MODEL, cfg.CLASS_NAMES) == ()


class LazilyOpened(CheckedFrames):
    """Opens its file with the first frame, and keeps where frames lie: loader processes do so anew."""

    file: Any = None

    def load_sample(self, index: int) -> dict[str, Any]:
        self.file = self.file or object()
        self.places[index] = 0
        return super().load_sample(index)


def test_the_short_form_opens_no_file_that_loader_processes_would_share() -> None:
    cfg = checked_cfg()
    dataset = LazilyOpened(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=True)
    dataset.places = {}
    assert len(survey_some(dataset, budget_s=60)) == 20
    assert dataset.file is None and dataset.places == {}


def test_the_short_form_opens_none_of_a_joined_set() -> None:
    dataset = joined()
    own = dataset.members[0].dataset
    load = type(own).load_sample

    def opening(self: Any, index: int) -> dict[str, Any]:
        self.file = object()
        return load(self, index)

    own.__class__ = type("Opening", (type(own),), {"load_sample": opening, "file": None})
    assert len(survey_some(dataset, budget_s=60)) == len(dataset) and own.file is None


def test_a_sample_of_frames_does_not_miss_classes() -> None:
    report = report_of(rename)
    assert judge(report.frames, replace(report.expected, complete=False)).findings == []


def test_a_joined_set_compares_the_columns_of_its_sets() -> None:
    cfg = checked_cfg()
    dataset = joined()
    dataset.members[0].columns.index("intensity")
    dataset.members[1].settings.fill["intensity"] = 0.25
    load = dataset.members[2].dataset.load_sample

    def bytes_of(index: int) -> dict[str, Any]:
        sample = load(index)
        sample["points"][:, 3] *= 255
        return sample

    dataset.members[2].dataset.load_sample = bytes_of
    surveys = [survey_frame(dataset, index) for index in range(len(dataset))]
    cfg.DATA_CONFIG.DATA_PROCESSOR = []
    found = judge(surveys, replace(expected_of(cfg, dataset), learned=frozenset()))
    (finding,) = found.findings
    assert finding.kind == "column_range_of_sets" and "in lanes" in finding.text


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_are_read_in_parallel_with_the_same_result(workers: int) -> None:
    cfg = checked_cfg()
    dataset = CheckedFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=True)
    found, wanted = survey_all(dataset, workers), report_of().frames
    assert [frame.name for frame in found] == [str(index) for index in range(20)]
    assert all(a.columns == b.columns and a.voxels == b.voxels for a, b in zip(found, wanted, strict=True))


def test_voxels_are_counted_as_the_data_processor_makes_them() -> None:
    cfg = checked_cfg()
    dataset = CheckedFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    assert survey_frame(dataset, 3).voxels == len(dataset[3]["voxels"]) > 100


def test_the_short_form_reads_spread_frames_and_stops_at_its_budget() -> None:
    cfg = checked_cfg()
    dataset = CheckedFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=True)
    assert [frame.index for frame in survey_some(dataset, budget_s=60)] == list(range(20))
    assert len(survey_some(dataset, budget_s=0)) == 1


def test_the_short_form_draws_no_random_number_and_counts_no_frame() -> None:
    cfg = checked_cfg()
    dataset = CheckedFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=True)
    dataset.change = broken
    before = np.random.get_state()[1].tolist()
    survey_some(dataset)
    assert np.random.get_state()[1].tolist() == before and dataset._warned == set()
    assert dataset[4]["skipped_frames"] == ["4"]


def test_the_report_is_plain_data_too() -> None:
    plain = json.loads(json.dumps(to_plain(report_of(move(2, 4.0)))))
    assert plain["pointless"] and plain["frames"] == 20
    assert plain["boxes"]["Car"] | {"size": None} == {
        "class": "Car", "trained": True, "boxes": 40, "in_range": 0, "outside": {"x": 0, "y": 0, "z": 40},
        "empty": 0, "points": None, "size": None,
    }  # fmt: skip
    assert plain["point_classes"] == {"road": 5000, "car": 800, "other": 200, "no class": 0}
    assert plain["lanes"] == {"min": 2, "median": 2.0, "max": 2}


def test_the_text_has_a_row_for_each_class_and_a_line_for_each_finding() -> None:
    text = as_text(report_of(tram))
    assert "Tram*" in text and "* not in CLASS_NAMES" in text and "NOTE: 20 of 80 boxes" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "250 to 400 a frame" not in text and "MAX_NUMBER_OF_VOXELS 400 (train)" in " ".join(text.split())


def test_the_worst_frames_are_those_with_faults() -> None:
    def change(index: int, sample: dict[str, Any]) -> None:
        if index in (3, 7):
            move(2, 4.0)(index, sample)
        if index == 7:
            empty(index, sample)

    assert [frame.index for frame in worst_frames(report_of(change), 5)] == [7, 3]
    assert worst_frames(report_of(), 5) == []
