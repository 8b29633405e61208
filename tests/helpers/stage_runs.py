"""Three stages by the commands, each from the checkpoint of the one before it, with a digest of each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tool_runs import ROOT

from pcdet_freeze.__main__ import main

STAGES = ("stage1_detect", "stage2_segment", "stage3_lane")
DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")
SMALL = {
    "VFE.NUM_FILTERS": "[16]", "MAP_TO_BEV.NUM_BEV_FEATURES": "16", "BACKBONE_2D.LAYER_NUMS": "[1, 1, 1]",
    "BACKBONE_2D.NUM_FILTERS": "[16, 16, 16]", "BACKBONE_2D.NUM_UPSAMPLE_FILTERS": "[16, 16, 16]",
    "POST_PROCESSING.SCORE_THRESH": "0.0", "POST_PROCESSING.NMS_CONFIG.NMS_POST_MAXSIZE": "20",
}  # fmt: skip
"""keys of MODEL: a toy model that keeps every box, so that there are some to compare"""


def small_model(**more: str) -> list[str]:
    """Words for ``--set``: SMALL and further keys of MODEL, with ``__`` for the dots."""
    keys = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return [word for key, value in keys.items() for word in (f"MODEL.{key}", value)]


@dataclass
class StageRuns:
    """The runs of cfgs/<models>/stage*.yaml below ``out`` with the words ``given`` for ``--set``."""

    models: str
    out: Path
    given: list[str]
    digests: list[dict[str, Any]] = field(default_factory=list)

    def train(self, name: str, *flags: str) -> Path:
        """One epoch of a config; the checkpoint."""
        words = [
            "--cfg_file",
            str(ROOT / "cfgs" / self.models / f"{name}.yaml"),
            "--output_dir",
            str(self.out),
        ]
        small = ["--workers", "0", "--device", "cpu", "--fix_random_seed", "--epochs", "1", *flags]
        assert main(["train", *words, *small, "--set", *self.given]) == 0
        return self.out / self.models / name / "default" / "ckpt" / "checkpoint_epoch_1.pth"

    def all_stages(self, *flags: str) -> StageRuns:
        """Train the stages; only the last one is evaluated."""
        before: list[str] = []
        for name in STAGES:
            scored = [] if name == STAGES[-1] else ["--num_epochs_to_eval", "0"]
            checkpoint = self.train(name, "--max_iters", "3", *scored, *before, *flags)
            before = ["--pretrained_model", str(checkpoint)]
            self.digests.append(self._digest(name, checkpoint))
        return self

    def _digest(self, name: str, checkpoint: Path) -> dict[str, Any]:
        out, file = checkpoint.with_suffix(".json"), str(ROOT / "cfgs" / self.models / f"{name}.yaml")
        words = ["--cfg_file", file, "--ckpt", str(checkpoint), "--out", str(out), "--device", "cpu"]
        assert main(["digest", *words, "--set", *self.given]) == 0
        return json.loads(out.read_text())

    def scores(self) -> dict[str, float]:
        """Those of the last stage."""
        folder = self.out / self.models / STAGES[-1]
        return json.loads(next(folder.glob("default/eval/**/result.json")).read_text())

    def check_detections(self) -> None:
        """The detector's outputs are the same after each stage, and there are boxes."""
        for key in DETECTION:
            assert self.digests[0][key] == self.digests[1][key] == self.digests[2][key]
        assert self.digests[0]["pred_boxes"]["count"] > 0
