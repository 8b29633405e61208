"""``bench --what evaluation``: the frames that it scores are plausible, and rows have times."""

from __future__ import annotations

import pytest

from pcdet_freeze.bench.costs import evaluation_cost
from pcdet_freeze.bench.costs.evaluation_cost import CLASSES, measure_evaluation, stored_frames
from pcdet_freeze.bench.whole_runs.training_tables import seconds_table
from pcdet_freeze.evaluation.kitti import get_official_eval_result

POST = {
    "NMS_CONFIG": {"NMS_TYPE": "nms_gpu", "NMS_THRESH": 0.1, "NMS_PRE_MAXSIZE": 99, "NMS_POST_MAXSIZE": 9},
    "SCORE_THRESH": 0.1,
}


def test_most_but_not_all_labels_are_found() -> None:
    truth, found = stored_frames(60)
    values = get_official_eval_result(truth, found, CLASSES)[1]
    assert 30 < values["Car_bev_0.50/moderate_R40"] < 100
    assert values["Car_3d/moderate_R40"] < values["Car_3d_0.50/moderate_R40"]


def test_rows_have_a_first_call_later_calls_and_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("FRAMES", 5), ("ANCHORS", 1000), ("CANDIDATES", 50)):
        monkeypatch.setattr(evaluation_cost, name, size)
    rows = measure_evaluation(POST, rounds=2)
    assert [row["rounds"] for row in rows] == [1, 2, 20]
    assert all(row["seconds"] > 0 for row in rows) and seconds_table(rows).count("\n") == 2
