"""The three stages on a real sweep of Argoverse 2: all tasks are scored, and the detector stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tool_runs import ROOT, tool

from pcdet_freeze.__main__ import main

pytestmark = pytest.mark.slow

pytest.importorskip("pyarrow", reason="pyarrow is the extra av2")

STAGES = ROOT / "cfgs" / "argoverse2_models"
DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")


def sets(real_data: Path) -> list[str]:
    """A part of the range, so that a step is quick; every box is kept, so that there are some to compare."""
    return [
        "DATA_CONFIG.DATA_PATH", str(real_data / "av2" / "val"),
        "DATA_CONFIG.POINT_CLOUD_RANGE", "[-25.6, -12.8, -2, 0, 12.8, 3]",
        "MODEL.POST_PROCESSING.SCORE_THRESH", "0.0",
        "MODEL.POST_PROCESSING.NMS_CONFIG.NMS_POST_MAXSIZE", "40",
    ]  # fmt: skip


def stage(out: Path, name: str, data: list[str], before: Path | None) -> Path:
    """Three steps and an evaluation; the checkpoint."""
    start = [] if before is None else ["--pretrained_model", str(before)]
    few = [
        "--max_iters",
        "3",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--fix_random_seed",
        "--output_dir",
        str(out),
    ]
    words = ["--cfg_file", str(STAGES / f"{name}.yaml"), *few, *start, "--set", *data]
    assert tool("train").main(words) == 0
    return out / "argoverse2_models" / name / "default" / "ckpt" / "checkpoint_epoch_1.pth"


def digests(name: str, checkpoint: Path, data: list[str]) -> dict[str, Any]:
    out = checkpoint.with_suffix(".json")
    words = ["--cfg_file", str(STAGES / f"{name}.yaml"), "--ckpt", str(checkpoint), "--out", str(out)]
    assert main(["digest", *words, "--batch_size", "1", "--device", "cpu", "--set", *data]) == 0
    return json.loads(out.read_text())


def test_three_stages_leave_the_detections_on_a_real_sweep_as_they_were(
    real_data: Path, tmp_path: Path
) -> None:
    data, found, before = sets(real_data), [], None
    for name in ("stage1_detect", "stage2_segment", "stage3_lane"):
        before = stage(tmp_path, name, data, before)
        found.append(digests(name, before, data))
    for name in DETECTION:
        assert found[0][name] == found[1][name] == found[2][name]
    assert found[0]["pred_boxes"]["count"] > 0
    result = next(before.parents[1].glob("eval/**/result.json"))
    scores = json.loads(result.read_text())
    assert {"Car_3d/moderate_R40", "segmentation/mIoU", "segmentation/IoU/ground", "lane/F1"} <= scores.keys()
