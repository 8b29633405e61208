"""OPTIMIZATION.BEST, GUARD and EMA through tools/train.py, beside a freeze list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tool_runs import FREEZE, folder, log_of, train

from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

pytestmark = pytest.mark.slow

METRIC = "recall/rcnn_0.3"
SETS = [
    *FREEZE, "MODEL.POST_PROCESSING.SCORE_THRESH", "0.0", "OPTIMIZATION.EMA", "0.5",
    "OPTIMIZATION.BEST", f"{{METRIC: {METRIC}}}", "OPTIMIZATION.GUARD", f"{{{METRIC}: 1.0}}",
    "MODEL.FREEZE.LR_SCALE", "{backbone_2d.deblocks: 0.5}",
]  # fmt: skip


def test_a_frozen_run_is_evaluated_between_epochs_and_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    assert train(tmp_path, sets=SETS) == 0
    best = load_checkpoint(folder(tmp_path) / "ckpt" / "checkpoint_best.pth")
    found = json.loads((folder(tmp_path) / "run.json").read_text())["best"]
    assert found["metric"] == METRIC and best["epoch"] == found["epoch"] in (1, 2)
    assert METRIC in best[CHECKPOINT_KEY]["validation"]["baseline"]
    log = log_of(tmp_path)
    assert "Certificate intact" in log and "learning rate x 0.5: backbone_2d.deblocks" in log
    weights, raw = trained_weights(best), best["model_state"]
    moved = {name.partition(".")[0] for name in raw if not torch.equal(weights[name], raw[name])}
    assert moved == {"backbone_2d", "dense_head"}
    assert not any(name.startswith("backbone_2d.blocks") for name in best[CHECKPOINT_KEY]["ema"]["state"])
