"""A training on a joined set with balanced tasks: it resumes exactly, with any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pcdet_freeze import train
from pcdet_freeze.config import load_cfg
from pcdet_freeze.config.easy_dict import EasyDict
from pcdet_freeze.engine.train_api import TrainResult

pytestmark = pytest.mark.slow


def joined_cfg() -> EasyDict:
    """The three tasks of simulated scenes: boxes of eight scenes, other labels of three others."""
    cfg = load_cfg("synthetic_models/multi_task.yaml", [
        "DATA_CONFIG.SENSOR.BEAMS", "VLP-16", "DATA_CONFIG.MIN_CARS", "1", "DATA_CONFIG.NUM_SCENES.test", "2",
        "MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 1, 1]", "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]",
        "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]", "MODEL.BACKBONE_2D.MIXSEGNET.WIDTH", "16",
        "OPTIMIZATION.BATCH_SIZE_PER_GPU", "2",
    ])  # fmt: skip
    own = {key: value for key, value in cfg.DATA_CONFIG.items() if key != "DATA_PROCESSOR"}
    sets = {
        "scenes": {"LABELS": ["gt_boxes"], "DATA_CONFIG": {**own, "NUM_SCENES": {"train": 8, "test": 2}}},
        "roads": {
            "LABELS": ["point_labels", "lane_map"],
            "DATA_CONFIG": {**own, "SEED": {"train": 5, "test": 6}, "NUM_SCENES": {"train": 3, "test": 2}},
        },
    }
    shared = ("POINT_CLOUD_RANGE", "POINT_FEATURE_ENCODING", "DATA_PROCESSOR")
    cfg.DATA_CONFIG = EasyDict({
        "DATASET": "ConcatDataset", "DATASETS": sets, "BALANCE": "task", "FRAMES_PER_EPOCH": 6,
        **{key: cfg.DATA_CONFIG[key] for key in shared},
    })  # fmt: skip
    return cfg


def run(out: Path, workers: int = 0, stop_at: int | None = None, **more: Any) -> TrainResult:
    cfg = joined_cfg()
    if stop_at is not None:
        cfg.HOOK = [{"NAME": "stop_at.StopAt", "ITERATION": stop_at}]
    options: dict[str, Any] = {"epochs": 2, "num_epochs_to_eval": 0, "ckpt_save_time_interval": 0} | more
    return train(cfg, output_dir=out, workers=workers, device="cpu", fix_random_seed=True, **options)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(tmp_path_factory.mktemp("unbroken"), num_epochs_to_eval=1)


def test_a_run_that_ended_within_an_epoch_resumes_exactly(unbroken: TrainResult, tmp_path: Path) -> None:
    run(tmp_path, stop_at=4)
    resumed = run(tmp_path, workers=1)
    assert len(resumed.losses) == 2
    wanted = unbroken.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.model.state_dict().items())


def test_each_set_is_evaluated_by_its_own_labels(unbroken: TrainResult) -> None:
    assert {
        "scenes/Car_3d/moderate_R40",
        "roads/segmentation/mIoU",
        "roads/lane/F1",
    } <= unbroken.metrics.keys()
    assert not any(key.startswith(("scenes/lane", "roads/Car")) for key in unbroken.metrics)
