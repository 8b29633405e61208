"""Detection, then segmentation, then lanes, through tools/train.py: what is there stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tool_runs import LIST, ROOT, tool, words

from pcdet_freeze.__main__ import main

pytestmark = pytest.mark.slow

CFGS = ROOT / "cfgs" / "synthetic_models"
DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")
FEW = ["DATA_CONFIG.NUM_SCENES.train", "4", "DATA_CONFIG.NUM_SCENES.test", "2"]
FEW += ["MODEL.POST_PROCESSING.SCORE_THRESH", "0.0", "OPTIMIZATION.TASK_GRADIENTS", "50"]
"""untrained detectors are sure of nothing, and there must be boxes to compare"""


def stage(out: Path, name: str, start: Path | None, *more: str, tag: str = "a") -> Path:
    """Train a stage for two iterations; its checkpoint."""
    given = ["--pretrained_model", start] if start else []
    flags = ["--batch_size", "2", "--max_iters", "2", "--num_epochs_to_eval", "0", "--extra_tag", tag]
    line = words(out, *flags, *given, sets=[*FEW, *more], cfg=CFGS / f"{name}.yaml")
    assert tool("train").main(line) == 0
    return out / "synthetic_models" / name / tag / "ckpt" / "checkpoint_epoch_1.pth"


def digests(out: Path, name: str, ckpt: Path) -> dict[str, dict[str, object]]:
    line = words(out, cfg=CFGS / f"{name}.yaml", sets=FEW)
    sets = line[line.index("--set") :]
    given = ["--cfg_file", str(CFGS / f"{name}.yaml"), "--ckpt", str(ckpt), "--device", "cpu"]
    assert main(["digest", *given, "--batch_size", "2", "--out", str(out / "digest.json"), *sets]) == 0
    return json.loads((out / "digest.json").read_text())


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out, made = tmp_path_factory.mktemp("stages"), dict[str, Path]()
    for name in ("stage1_detect", "stage2_segment", "stage3_lane"):
        made[name] = stage(out, name, list(made.values())[-1] if made else None)
    return made


def test_p2_the_detector_puts_out_the_same_bits_after_every_stage(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    found = [digests(tmp_path, name, ckpt) for name, ckpt in stages.items()]
    assert found[0]["pred_boxes"]["count"] != 0
    for name in DETECTION:
        assert found[0][name] == found[1][name] == found[2][name]
    for name in ("segment_head", "pred_point_labels"):
        assert found[1][name] == found[2][name]


def test_without_the_list_it_does_not(stages: dict[str, Path], tmp_path: Path) -> None:
    free = stage(tmp_path, "stage2_segment", stages["stage1_detect"], LIST, "[]", tag="free")
    before = digests(tmp_path, "stage1_detect", stages["stage1_detect"])
    assert before["dense_head"] != digests(tmp_path, "stage2_segment", free)["dense_head"]


def test_p7_verify_agrees(stages: dict[str, Path]) -> None:
    first, second, third = (str(path) for path in stages.values())
    assert main(["verify", first, second]) == main(["verify", second, third]) == 0


def test_each_tasks_loss_is_in_tensorboards_figures_and_in_no_other_stage(stages: dict[str, Path]) -> None:
    logs = [path.parents[1] / "tensorboard" for path in stages.values()]
    names = (b"train/grad_norm_dense_head", b"train/grad_norm_segment_head", b"train/grad_norm_lane_head")
    for own, folder in enumerate(logs):
        data = b"".join(file.read_bytes() for file in folder.iterdir())
        assert [name in data for name in names] == [other == own for other in range(3)]


def test_stage_3_holds_what_stage_2_trained(stages: dict[str, Path]) -> None:
    then, now = (torch.load(stages[n])["model_state"] for n in ("stage2_segment", "stage3_lane"))
    changed = [name for name in then if name != "global_step" and not torch.equal(then[name], now[name])]
    assert changed == []
