"""Boxes of KITTI, point labels in SemanticKITTI's format, lanes of PandaSet: one model, three stages."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_freeze import evaluate, train
from pcdet_freeze.__main__ import main
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.engine.train_api import TrainResult, read_cfg
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

pytestmark = pytest.mark.slow

STAGES = {"stage1_detect": 60, "stage2_segment": 20, "stage3_lane": 30}
"""stage -> iterations of two frames"""
# KITTI's frames have one car and one pedestrian in range: the truth itself scores 9.1 of 11 recall points
METRICS = {
    "stage1_detect": ("kitti/Pedestrian_3d_0.25/moderate_R11", 9.0),
    "stage2_segment": ("semantic_kitti/segmentation/mIoU", 20.0),
    "stage3_lane": ("pandaset/lane/F1", 0.8),
}
"""stage -> its metric and what it reaches at least"""


NUMBERS = {
    "vegetation": 70, "ground": 72, "road": 40, "lane_line": 60, "stop_line": 60, "other_marking": 60,
    "sidewalk": 48, "car": 10, "truck": 18, "bus": 13, "two_wheeler": 11, "pedestrian": 30,
    "other_vehicle": 20, "barrier": 51, "sign": 81, "building": 50, "other": 99,
}  # fmt: skip
"""PandaSet's classes in the numbers of SemanticKITTI's files"""
ROAD = 1.43
"""metres between the origins of KITTI and PandaSet"""


def write_semantic_kitti(pandaset: Path, out: Path) -> None:
    """Write sweeps 00 and 01 of PandaSet, as KITTI's sensor would see them, in SemanticKITTI's format."""
    cfg = read_cfg("dataset_configs/pandaset_dataset.yaml", {"DATA_PATH": str(pandaset)})
    dataset = build_dataset(cfg, ["Car"], training=True)
    table = np.array([NUMBERS[name] for name in dataset.semantic_class_names] + [0] * 256, np.uint32)
    for folder in ("velodyne", "labels"):
        (out / "sequences/00" / folder).mkdir(parents=True)
    for number in range(2):
        sample = dataset.load_sample(number)
        sample["points"][:, 2] -= ROAD
        sample["points"].tofile(out / f"sequences/00/velodyne/{number:06d}.bin")
        table[sample["point_labels"]].tofile(out / f"sequences/00/labels/{number:06d}.label")


@pytest.fixture(scope="module")
def words(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of --set: the real frames without augmentation, coarse cells and few channels."""
    infos, sets = tmp_path_factory.mktemp("infos"), "DATA_CONFIG.DATASETS"
    paths = [
        f"{sets}.kitti.DATA_CONFIG.DATA_PATH", str(real_data / "kitti"),
        f"{sets}.kitti.DATA_CONFIG.INFO_ROOT", str(infos),
        f"{sets}.pandaset.DATA_CONFIG.DATA_PATH", str(real_data / "pandaset"),
        f"{sets}.semantic_kitti.DATA_CONFIG.DATA_PATH", str(tmp_path_factory.mktemp("semantic_kitti")),
        f"{sets}.semantic_kitti.DATA_CONFIG.SEQUENCES", "{train: [0], test: [0]}",
    ]  # fmt: skip
    write_semantic_kitti(real_data / "pandaset", Path(paths[7]))
    assert main(["prepare", "kitti", "--cfg_file", "mixed_models/stage1_detect.yaml", "--set", *paths]) == 0
    return [
        *paths,
        f"{sets}.kitti.DATA_CONFIG.DATA_AUGMENTOR", "{}",
        f"{sets}.pandaset.DATA_CONFIG.LANE.CELL_SIZE", "0.64",
        "DATA_CONFIG.DATA_PROCESSOR.2.VOXEL_SIZE", "[0.64, 0.64, 6.0]",
        "DATA_CONFIG.FRAMES_PER_EPOCH", "4",
        "MODEL.BACKBONE_2D.NUM_FILTERS", "[16, 16, 32]",
        "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[16, 16, 16]",
        "OPTIMIZATION.BATCH_SIZE_PER_GPU", "2", "OPTIMIZATION.LR", "0.006",
    ]  # fmt: skip


def words_of(stage: str, words: list[str]) -> list[str]:
    points = [] if stage == "stage1_detect" else ["MODEL.SEGMENT_HEAD.MAX_POINTS", "16384"]
    return [*words, *points, *(["MODEL.BACKBONE_2D.MIXSEGNET.WIDTH", "32"] if stage == "stage3_lane" else [])]


@pytest.fixture(scope="module")
def results(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainResult]:
    out, found = tmp_path_factory.mktemp("mixed"), {}
    before: Path | None = None
    for stage, iterations in STAGES.items():
        found[stage] = train(
            f"mixed_models/{stage}.yaml", words_of(stage, words), pretrained=before, output_dir=out,
            workers=0, device="cpu", fix_random_seed=True, max_iters=iterations, no_savings=True,
        )  # fmt: skip
        before = found[stage].checkpoint
    return found


def untrained(stage: str, words: list[str], out: Path) -> dict[str, float]:
    """Metrics of the stage's model with its initial weights."""
    cfg = read_cfg(f"mixed_models/{stage}.yaml", words_of(stage, words))
    dataset = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    torch.manual_seed(0)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset)
    torch.save({"model_state": model.state_dict()}, out / "untrained.pth")
    return evaluate(cfg, out / "untrained.pth", output_dir=out, workers=0, device="cpu")


@pytest.mark.parametrize("stage", STAGES)
def test_each_task_beats_its_untrained_metric(
    stage: str, words: list[str], results: dict[str, TrainResult], tmp_path: Path
) -> None:
    metric, bar = METRICS[stage]
    before, after = untrained(stage, words, tmp_path)[metric], results[stage].metrics[metric]
    assert after >= bar and after > 2 * before, (before, after)


def test_what_is_frozen_keeps_every_bit(results: dict[str, TrainResult]) -> None:
    files = [result.checkpoint or Path() for result in results.values()]
    for before, after in pairwise(load_checkpoint(file)["model_state"] for file in files):
        kept = [key for key in before if key.startswith(("vfe", "backbone_2d.blocks", "dense_head"))]
        assert kept and all(torch.equal(before[key], after[key]) for key in kept)


def test_the_metrics_of_earlier_stages_are_the_same_after_the_last(results: dict[str, TrainResult]) -> None:
    last = results["stage3_lane"].metrics
    for stage, (metric, _) in METRICS.items():
        assert results[stage].metrics[metric] == last[metric]


def test_the_check_of_these_data_finds_nothing_that_makes_the_training_pointless(words: list[str]) -> None:
    flags = ["--cfg_file", "mixed_models/stage3_lane.yaml", "--workers", "0", "--pictures", "0"]
    assert main(["check-data", *flags, "--set", *words]) == 0
