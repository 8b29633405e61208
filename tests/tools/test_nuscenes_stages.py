"""The nuScenes configs train on the small set, and three frozen stages leave the detections as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tool_runs import ROOT

pytest.importorskip("nuscenes", reason="the nuscenes-devkit is the extra nuscenes")

from nuscenes_maker import VERSION, make_nuscenes

from pcdet_freeze.__main__ import main

pytestmark = pytest.mark.slow

FOLDER = ROOT / "cfgs" / "nuscenes_models"
DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")
FIVE = {
    "cbgs_pp_multihead": 12.8,
    "cbgs_second_multihead": 12.8,
    "cbgs_dyn_pp_centerpoint": 12.8,
    "cbgs_voxel01_res3d_centerpoint": 12.8,
    "cbgs_voxel0075_res3d_centerpoint": 9.6,
}
"""and the range to which they are cut, in metres"""
SMALL = {
    "VFE.NUM_FILTERS": "[16]", "MAP_TO_BEV.NUM_BEV_FEATURES": "16", "BACKBONE_2D.LAYER_NUMS": "[1, 1, 1]",
    "BACKBONE_2D.NUM_FILTERS": "[16, 16, 16]", "BACKBONE_2D.NUM_UPSAMPLE_FILTERS": "[16, 16, 16]",
    "DENSE_HEAD.SHARED_CONV_NUM_FILTER": "16", "POST_PROCESSING.SCORE_THRESH": "0.0",
    "POST_PROCESSING.NMS_CONFIG.NMS_POST_MAXSIZE": "20",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set with the infos and databases of both frames."""
    made = make_nuscenes(tmp_path_factory.mktemp("nuscenes"))
    for name in ("stage1_detect", "cbgs_pp_multihead"):
        file = str(FOLDER / f"{name}.yaml")
        sets = ["DATA_CONFIG.DATA_PATH", str(made), "DATA_CONFIG.VERSION", VERSION]
        assert main(["prepare", "nuscenes", "--cfg_file", file, "--set", *sets]) == 0
    return made


def sets(data: Path, reach: float) -> list[str]:
    limits = f"[-{reach}, -{reach}, -5, {reach}, {reach}, 3]"
    return ["DATA_CONFIG.DATA_PATH", str(data), "DATA_CONFIG.VERSION", VERSION,
            "DATA_CONFIG.POINT_CLOUD_RANGE", limits]  # fmt: skip


def train(out: Path, name: str, given: list[str], *flags: str) -> Path:
    """A few steps and an evaluation; the folder of the run."""
    words = [
        "--cfg_file",
        str(FOLDER / f"{name}.yaml"),
        "--workers",
        "0",
        "--device",
        "cpu",
        "--batch_size",
        "2",
    ]
    few = ["--fix_random_seed", "--output_dir", str(out), "--epochs", "1", *flags]
    assert main(["train", *words, *few, "--set", *given]) == 0
    return out / "nuscenes_models" / name / "default"


@pytest.mark.parametrize("name", FIVE)
def test_a_config_of_openpcdet_trains(data: Path, tmp_path: Path, name: str) -> None:
    flags = ["--max_iters", "2", "--num_epochs_to_eval", "0"]
    run = train(tmp_path, name, sets(data, FIVE[name]), *flags)
    assert (run / "ckpt" / "checkpoint_epoch_1.pth").is_file()


def digests(name: str, run: Path, given: list[str]) -> dict[str, Any]:
    out = run / "digest.json"
    words = ["--cfg_file", str(FOLDER / f"{name}.yaml"), "--ckpt", str(run / "ckpt/checkpoint_epoch_1.pth")]
    assert main(["digest", *words, "--out", str(out), "--device", "cpu", "--set", *given]) == 0
    return json.loads(out.read_text())


def test_three_stages_leave_the_detections_as_they_were(data: Path, tmp_path: Path) -> None:
    given, found, before = sets(data, 12.8), [], []
    given += [word for key, value in SMALL.items() for word in (f"MODEL.{key}", value)]
    for name in ("stage1_detect", "stage2_segment", "stage3_lane"):
        run = train(tmp_path, name, given, "--max_iters", "3", *before)
        before = ["--pretrained_model", str(run / "ckpt/checkpoint_epoch_1.pth")]
        found.append(digests(name, run, given))
    for name in DETECTION:
        assert found[0][name] == found[1][name] == found[2][name]
    assert found[0]["pred_boxes"]["count"] > 0
    scores = json.loads(next(run.glob("eval/**/result.json")).read_text())
    assert {
        "nuscenes/NDS",
        "nuscenes/mAP",
        "nuscenes/AP/car",
        "segmentation/mIoU",
        "lane/F1",
    } <= scores.keys()
