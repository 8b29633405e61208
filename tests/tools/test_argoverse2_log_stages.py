"""Three frozen stages on logs of Argoverse 2: the detections stay as they were, all tasks are scored."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pyarrow is the extra av2")

from argoverse2_maker import make_split
from stage_runs import StageRuns, small_model

pytestmark = pytest.mark.slow


def test_three_stages_leave_the_detections_as_they_were(tmp_path: Path) -> None:
    data = make_split(tmp_path / "av2", "train", logs=2, advance=1.0)
    given = ["DATA_CONFIG.DATA_PATH", str(make_split(data, "val", advance=1.0)),
             "DATA_CONFIG.INTERVAL.test", "1",
             "DATA_CONFIG.POINT_CLOUD_RANGE", "[-12.8, -12.8, -2, 12.8, 12.8, 4]"]  # fmt: skip
    runs = StageRuns("argoverse2_log_models", tmp_path, [*given, *small_model()]).all_stages(
        "--batch_size", "1"
    )
    runs.check_detections()
    expected = {"av2/mAP", "av2/CDS", "av2/AP/Vehicle", "segmentation/mIoU", "lane/F1"}
    assert expected <= runs.scores().keys()
