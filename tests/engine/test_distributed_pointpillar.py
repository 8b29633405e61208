"""A training under torchrun: two gloo processes train PointPillar on synthetic scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import torchrun, worker

from pcdet_freeze.__main__ import main as command

pytestmark = pytest.mark.slow

SMALL = [
    "DATA_CONFIG.NUM_SCENES.train", "6", "DATA_CONFIG.NUM_SCENES.test", "3",
    "DATA_CONFIG.SENSOR.BEAMS", "VLP-16", "DATA_CONFIG.MIN_CARS", "1",
    "MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 1, 1]", "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]",
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]",
    "MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, backbone_2d.blocks]", "MODEL.FREEZE.ALLOW_RANDOM", "True",
]  # fmt: skip
FLAGS = ["--launcher", "pytorch", "--batch_size", "4", "--epochs", "2", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ddp")
    cfg = root / "cfgs" / "synthetic_models" / "pointpillar.yaml"
    script = worker("pointpillar_worker.py")
    flags = [*FLAGS, "--cfg_file", str(cfg), "--output_dir", str(out), "--set", *SMALL]
    done = torchrun(script, str(out), *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def run_of(out: Path) -> Path:
    return out / "synthetic_models" / "pointpillar" / "default"


def states(out: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


def test_both_ranks_end_with_the_same_weights_and_rank_0_saved_them(out: Path) -> None:
    first, second = states(out)
    saved: Any = torch.load(run_of(out) / "ckpt" / "checkpoint_epoch_2.pth")
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], saved["model_state"][name]), name


def test_what_is_frozen_stayed_and_the_rest_moved_on_both_ranks(out: Path) -> None:
    ckpt = run_of(out) / "ckpt"
    pair = [str(ckpt / f"checkpoint_epoch_{epoch}.pth") for epoch in (1, 2)]
    assert command(["verify", *pair]) == 0
    assert command(["verify", *pair, "--names", "dense_head"]) == 1


def test_three_frames_over_two_ranks_are_scored_once_each(out: Path) -> None:
    folder = run_of(out) / "eval" / "eval_with_train" / "epoch_2" / "test"
    assert "Car_3d/moderate_R40" in json.loads((folder / "result.json").read_text())
    assert "(3 samples)" in "".join(path.read_text() for path in run_of(out).glob("train_*.log"))


def test_sync_bn_on_cpu_with_two_processes_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    cfg = root / "cfgs" / "synthetic_models" / "pointpillar.yaml"
    flags = [*FLAGS, "--cfg_file", str(cfg), "--output_dir", str(tmp_path), "--sync_bn", "--set", *SMALL]
    frozen = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, backbone_2d]"]
    done = torchrun(worker("pointpillar_worker.py"), str(tmp_path), *flags, *frozen)
    assert done.returncode != 0
    assert "ConfigError" in done.stderr and "--sync_bn needs CUDA with several processes" in done.stderr
    assert "only work with GPU modules" not in done.stderr
