"""The command ``recipes``; its flags and help: ``arguments/recipes.py``."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from pcdet_freeze.cli.arguments.recipes import TRUNKS
from pcdet_freeze.cli.three_stages import QUICK, evaluate_stage, set_words, train_stage
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

LIST, WEIGHTS = "MODEL.NOT_TRAIN_IN_MULTI_TASK", "MODEL.LOSS_WEIGHTS"
LATER = {"stage2_segment": "{dense_head: 0}", "stage3_lane": "{dense_head: 0, segment_head: 0}"}
"""later stage -> the loss weights with which only the new task gives a loss"""
RECIPES = {
    "the list": [],
    "fine-tuning": [LIST, "[]", WEIGHTS],
    "norm layers only": ["MODEL.FREEZE.PARAMETERS", "False", WEIGHTS],
    "fine-tuning, all losses": [LIST, "[]"],
}
AP, MIOU, F1 = "Car_3d_0.50/moderate_R40", "segmentation/mIoU", "lane/F1"
HEAD = (
    "recipe", "car AP after 1", "after 2", "after 3", "mIoU after 2", "after 3", "lane F1 after 3",
    "detector's outputs", "training, s",
)  # fmt: skip


def options(recipe: list[str], cfg: str, few: list[str]) -> list[str]:
    """Config keys of a recipe in a stage; a final WEIGHTS gets the value of the stage."""
    return [*recipe, *([LATER[cfg]] if recipe[-1:] == [WEIGHTS] else []), *few]


def seconds(*stages: dict[str, Any]) -> float:
    """Seconds of all iterations, by their median; evaluations are not counted."""
    return sum(stage["iterations"] * stage["seconds_per_iteration"]["batch"] for stage in stages)


def row(name: str, stages: list[dict[str, Any]]) -> list[str]:
    """Cells of a recipe; ``stages``: the figures of stage 1, 2, 3."""
    detectors = [stage["detector"] for stage in stages]
    same = "the same bits" if detectors[1:] == detectors[:-1] else "changed"
    aps = [f"{stage[AP]:.1f}" for stage in stages]
    mious = [f"{stage[MIOU]:.1f}" for stage in stages[1:]]
    return [name, *aps, *mious, f"{stages[-1][F1]:.3f}", same, f"{seconds(*stages):.0f}"]


def table(rows: list[list[str]]) -> str:
    """Rows as a Markdown table."""
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def run(args: argparse.Namespace) -> int:
    """Train, print; exit code 1 where the detector changed under the freeze list."""
    out, few = Path(args.output_dir).resolve(), QUICK if args.quick else []
    budget = 4 if few else args.max_iters
    prefix = TRUNKS[args.trunk]
    if args.stage1 is not None:
        load_checkpoint(args.stage1, mmap=True)  # before anything is deleted
    shutil.rmtree(out / "synthetic_models", ignore_errors=True)

    def stage(cfg: str, tag: str, start: str | None, iterations: int, keys: list[str]) -> dict[str, Any]:
        length = ["--batch_size", str(args.batch_size), "--max_iters", str(iterations)]
        return train_stage(out, cfg, tag, start, [*length, *set_words(keys)])

    if args.stage1 is None:
        first = stage("stage1_detect", "first", None, budget, few)
    else:
        first = evaluate_stage(out, "stage1_detect", ["--ckpt", args.stage1], args.batch_size, few)
    joint = stage(f"{prefix}multi_task", "joint", None, 3 * budget, few)
    figures = ["-", "-", f"{joint[AP]:.1f}", "-", f"{joint[MIOU]:.1f}", f"{joint[F1]:.3f}", "-"]
    rows = [["joint", *figures, f"{seconds(joint):.0f}"]]
    for name, recipe in RECIPES.items():
        stages, tag = [first], name.replace(", ", "_").replace(" ", "_")
        for cfg in LATER:
            keys = options(recipe, cfg, few)
            stages.append(stage(f"{prefix}{cfg}", tag, stages[-1]["ckpt"], budget, keys))
        rows.append(row(name, stages))
        print(f"\n{budget} iterations a stage, {3 * budget} jointly:\n\n{table(rows)}", flush=True)
    return int(rows[1][7] != "the same bits")
