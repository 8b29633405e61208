"""Two heads trained apart by tools/train.py and stitched are those that were trained one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runs import RANDOM, ROOT, SMALL, tool, words

from pcdet_freeze.__main__ import main
from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

pytestmark = pytest.mark.slow

SMALLER = [
    "DATA_CONFIG.POINT_CLOUD_RANGE", "[-12.8, -12.8, -3, 12.8, 12.8, 1]", "DATA_CONFIG.MIN_CARS", "0",
]  # fmt: skip
STAGES = ROOT / "cfgs" / "synthetic_models"
SEGMENT = "segment_head,backbone_2d.segblocks,backbone_2d.seg_out_conv"
LANE = "lane_head,backbone_2d.laneblocks,backbone_2d.mixsegnet"


def stage(out: Path, cfg: str, tag: str, *flags: object, sets: list[str] | None = None) -> Path:
    """Three steps of a stage; its checkpoint."""
    cfg_file = STAGES / f"{cfg}.yaml"
    few = ["--batch_size", 2, "--max_iters", 3, "--num_epochs_to_eval", 0, "--extra_tag", tag]
    assert tool("train").main(words(out, *few, *flags, sets=[*SMALLER, *(sets or [])], cfg=cfg_file)) == 0
    return out / "synthetic_models" / cfg / tag / "ckpt" / "checkpoint_epoch_1.pth"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A detector; segmentation and lanes one after the other; lanes apart; all of it stitched."""
    out = tmp_path_factory.mktemp("stages")
    det = stage(out, "stage1_detect", "det")
    seg = stage(out, "stage2_segment", "seg", "--pretrained_model", det)
    sequence = stage(out, "stage3_lane", "sequence", "--pretrained_model", seg)
    # apart: the same model, whose segmentation is there, but as it was initialised
    lane = stage(out, "stage3_lane", "apart", "--pretrained_model", det, sets=RANDOM)
    words = [
        "--trunk",
        det,
        "--take",
        f"{SEGMENT}:{seg}",
        "--take",
        f"{LANE}:{lane}",
        "--out",
        out / "all.pth",
    ]
    assert main(["stitch", *map(str, words)]) == 0
    return {"det": det, "sequence": sequence, "lane": lane, "all": out / "all.pth"}


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["model_state"]


def test_the_stitched_model_has_the_tensors_of_the_sequence_to_the_bit(runs: dict[str, Path]) -> None:
    stitched, sequence = state(runs["all"]), state(runs["sequence"])
    assert stitched.keys() == sequence.keys()
    differ = [name for name in sequence if not torch.equal(stitched[name], sequence[name])]
    assert set(differ) <= {"global_step"}


def test_the_stitched_model_puts_out_what_the_sequence_does(runs: dict[str, Path], capsys: Any) -> None:
    cfg = str(STAGES / "stage3_lane.yaml")
    told = []
    for name in ("sequence", "all"):
        which = ["--cfg_file", cfg, "--ckpt", str(runs[name])]
        assert main(["digest", *which, "--set", *SMALL, *SMALLER]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] and "pred_lane" in told[0]


def test_a_trunk_that_was_trained_on_is_refused_with_the_tensors_that_differ(
    runs: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    checkpoint = load_checkpoint(runs["det"])
    checkpoint["model_state"]["backbone_2d.blocks.0.1.weight"][0, 0, 0, 0] += 1e-6
    save_checkpoint(checkpoint, tmp_path / "moved.pth")
    take = [
        "--trunk",
        tmp_path / "moved.pth",
        "--take",
        f"{LANE}:{runs['lane']}",
        "--out",
        tmp_path / "all.pth",
    ]
    assert main(["stitch", *map(str, take)]) == 1
    told = capsys.readouterr().err
    assert f"\n  {runs['lane']}: backbone_2d.blocks.0.1.weight changed\n" in told
    assert told.count("changed") == 1 and not (tmp_path / "all.pth").exists()
