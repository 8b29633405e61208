"""Boxes from KITTI, point labels and lanes from PandaSet: one model, three stages, on real frames."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pcdet_freeze import evaluate, train
from pcdet_freeze.__main__ import main
from pcdet_freeze.engine.train_api import TrainResult
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

pytestmark = pytest.mark.slow

STAGES = {"detect": "stage1_detect", "segment": "stage2_segment", "lane": "stage3_lane"}
METRICS = {
    "detect": "kitti/Pedestrian_bev_0.25/moderate_R40",
    "segment": "pandaset/segmentation/mIoU",
    "lane": "pandaset/lane/F1",
}


@pytest.fixture(scope="module")
def words(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of --set: the real frames without augmentation, coarse cells and few channels."""
    infos = tmp_path_factory.mktemp("infos")
    sets = "DATA_CONFIG.DATASETS"
    paths = [
        f"{sets}.kitti.DATA_CONFIG.DATA_PATH", str(real_data / "kitti"),
        f"{sets}.kitti.DATA_CONFIG.INFO_ROOT", str(infos),
        f"{sets}.pandaset.DATA_CONFIG.DATA_PATH", str(real_data / "pandaset"),
    ]  # fmt: skip
    cfg = "mixed_models/stage1_detect.yaml"
    assert main(["prepare", "kitti", "--cfg_file", cfg, "--set", *paths]) == 0
    return [
        *paths,
        f"{sets}.kitti.DATA_CONFIG.DATA_AUGMENTOR", "{}",
        f"{sets}.pandaset.DATA_CONFIG.LANE.CELL_SIZE", "0.64",
        "DATA_CONFIG.DATA_PROCESSOR.2.VOXEL_SIZE", "[0.64, 0.64, 6.0]",
        "DATA_CONFIG.FRAMES_PER_EPOCH", "4",
        "MODEL.BACKBONE_2D.NUM_FILTERS", "[16, 16, 32]",
        "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[16, 16, 16]",
        "OPTIMIZATION.BATCH_SIZE_PER_GPU", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def results(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainResult]:
    out, found = tmp_path_factory.mktemp("mixed"), {}
    before: Path | None = None
    for name, stage in STAGES.items():
        found[name] = train(
            f"mixed_models/{stage}.yaml", words, pretrained=before, output_dir=out, workers=0,
            device="cpu", fix_random_seed=True, max_iters=4, no_savings=True,
        )  # fmt: skip
        before = found[name].checkpoint
    return found


@pytest.mark.parametrize("name", STAGES)
def test_each_task_beats_its_untrained_metric(
    name: str, words: list[str], results: dict[str, TrainResult], tmp_path: Path
) -> None:
    untrained = _untrained(name, words, results, tmp_path)
    trained = results[name].metrics[METRICS[name]]
    assert trained > max(2 * untrained.get(METRICS[name], 0.0), 0.1), (trained, untrained)


def _untrained(name: str, words: list[str], results: dict[str, TrainResult], out: Path) -> dict[str, float]:
    """Metrics of the stage's model before its first step: after one with a learning rate of zero."""
    state = load_checkpoint(results[name].checkpoint or Path())
    torch.manual_seed(0)
    cfg = f"mixed_models/{STAGES[name]}.yaml"
    fresh = {key: torch.randn_like(value) * 0.05 if value.is_floating_point() and value.ndim > 1 else value
             for key, value in state["model_state"].items()}  # fmt: skip
    torch.save({**state, "model_state": fresh}, out / "untrained.pth")
    return evaluate(cfg, out / "untrained.pth", words, output_dir=out, workers=0, device="cpu")


def test_what_is_frozen_keeps_every_bit(results: dict[str, TrainResult]) -> None:
    files = [result.checkpoint or Path() for result in results.values()]
    for before, after in pairwise(load_checkpoint(file)["model_state"] for file in files):
        kept = [key for key in before if key.startswith(("vfe", "backbone_2d.blocks", "dense_head"))]
        assert kept and all(torch.equal(before[key], after[key]) for key in kept)


def test_the_check_finds_nothing_that_makes_the_training_pointless(words: list[str]) -> None:
    flags = ["--cfg_file", "mixed_models/stage3_lane.yaml", "--workers", "0", "--pictures", "0"]
    assert main(["check-data", *flags, "--set", *words]) == 0
