"""The nuScenes configs train on the small set, and three frozen stages leave the detections as they were."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tool_runs import ROOT

pytest.importorskip("nuscenes", reason="the nuscenes-devkit is the extra nuscenes")

from nuscenes_maker import VERSION, make_nuscenes
from stage_runs import StageRuns, small_model

from pcdet_freeze.__main__ import main

pytestmark = pytest.mark.slow

MODELS = "nuscenes_models"
FIVE = ["cbgs_pp_multihead", "cbgs_second_multihead", "cbgs_dyn_pp_centerpoint",
        "cbgs_voxel01_res3d_centerpoint", "cbgs_voxel0075_res3d_centerpoint"]  # fmt: skip
FEW = 3
"""frames of an evaluation"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small set with the infos and databases of both frames."""
    made = make_nuscenes(tmp_path_factory.mktemp("nuscenes"))
    for name in ("stage1_detect", "cbgs_pp_multihead"):
        file = str(ROOT / "cfgs" / MODELS / f"{name}.yaml")
        sets = ["DATA_CONFIG.DATA_PATH", str(made), "DATA_CONFIG.VERSION", VERSION]
        assert main(["prepare", "nuscenes", "--cfg_file", file, "--set", *sets]) == 0
    infos = made / "nuscenes_infos_10sweeps_val.pkl"
    infos.write_bytes(pickle.dumps(pickle.loads(infos.read_bytes())[5 : 5 + FEW]))
    return made


def sets(data: Path, reach: float = 6.4) -> list[str]:
    """The small set, cut to ``reach`` metres around the vehicle."""
    limits = f"[-{reach}, -{reach}, -5, {reach}, {reach}, 3]"
    return ["DATA_CONFIG.DATA_PATH", str(data), "DATA_CONFIG.VERSION", VERSION,
            "DATA_CONFIG.POINT_CLOUD_RANGE", limits]  # fmt: skip


@pytest.mark.parametrize("name", FIVE)
def test_a_config_of_openpcdet_trains(data: Path, tmp_path: Path, name: str) -> None:
    thin = "[1, 1]" if "voxel" in name or "second" in name else "[1, 1, 1]"
    given = [*sets(data, 6.0 if "0075" in name else 6.4), "MODEL.BACKBONE_2D.LAYER_NUMS", thin]
    few = ["--max_iters", "2", "--batch_size", "2", "--num_epochs_to_eval", "0"]
    assert StageRuns(MODELS, tmp_path, given).train(name, *few).is_file()


def test_three_stages_leave_the_detections_as_they_were(data: Path, tmp_path: Path) -> None:
    given = [*sets(data), *small_model(DENSE_HEAD__SHARED_CONV_NUM_FILTER="16")]
    runs = StageRuns(MODELS, tmp_path, given).all_stages("--batch_size", "2")
    runs.check_detections()
    expected = {"nuscenes/NDS", "nuscenes/mAP", "nuscenes/AP/car", "segmentation/mIoU", "lane/F1"}
    assert expected <= runs.scores().keys()
