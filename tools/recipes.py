"""The same three tasks by five recipes on the same budget: what each keeps of the detector, what it learns.

    python tools/recipes.py                    # 100 iterations a stage; the table is printed at the end
    python tools/recipes.py --max_iters 450    # a budget like the demo's
    python tools/recipes.py --quick            # a few minutes: the path, not the quality

Stage 1 (detection) is trained once; every recipe but the first goes on from its checkpoint with segmentation,
then with lanes. The first one trains all three tasks at once, for as many iterations as three stages have.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from demo import QUICK, train

LIST, WEIGHTS = "MODEL.NOT_TRAIN_IN_MULTI_TASK", "MODEL.LOSS_WEIGHTS"
LATER = {"stage2_segment": "{dense_head: 0}", "stage3_lane": "{dense_head: 0, segment_head: 0}"}
"""the stages after the first, and the weights with which only the new task gives a loss"""
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
    """Config keys of a recipe in a stage: a recipe that ends with the weights' key takes the stage's own."""
    return [*recipe, *([LATER[cfg]] if recipe[-1:] == [WEIGHTS] else []), *few]


def seconds(*stages: dict[str, Any]) -> float:
    """What the iterations took, by their median, evaluations apart."""
    return sum(stage["iterations"] * stage["seconds_per_iteration"]["batch"] for stage in stages)


def row(name: str, stages: list[dict[str, Any]]) -> list[str]:
    """The figures of a recipe; ``stages``: those of stage 1, 2, 3."""
    detectors = [stage["detector"] for stage in stages]
    same = "the same bits" if detectors[1:] == detectors[:-1] else "changed"
    aps = [f"{stage[AP]:.1f}" for stage in stages]
    mious = [f"{stage[MIOU]:.1f}" for stage in stages[1:]]
    return [name, *aps, *mious, f"{stages[-1][F1]:.3f}", same, f"{seconds(*stages):.0f}"]


def table(rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Train, print; exit code 1 where the list let the detector change."""
    parser = argparse.ArgumentParser(description="Five ways to one model of three tasks, one budget.")
    parser.add_argument("--output_dir", default="output/compare", help="emptied first")
    parser.add_argument("--max_iters", type=int, default=100, help="iterations of each stage")
    parser.add_argument("--quick", action="store_true", help="4 iterations on few scenes")
    args = parser.parse_args()
    out, few = Path(args.output_dir).resolve(), QUICK if args.quick else []
    budget = 4 if few else args.max_iters
    shutil.rmtree(out / "synthetic_models", ignore_errors=True)

    def stage(cfg: str, tag: str, start: str | None, iterations: int, keys: list[str]) -> dict[str, Any]:
        given = ["--max_iters", str(iterations), *(["--set", *keys] if keys else [])]
        return train(out, cfg, tag, start, given, few)

    first = stage("stage1_detect", "first", None, budget, few)
    joint = stage("multi_task", "joint", None, 3 * budget, few)
    figures = ["-", "-", f"{joint[AP]:.1f}", "-", f"{joint[MIOU]:.1f}", f"{joint[F1]:.3f}", "-"]
    rows = [["joint", *figures, f"{seconds(joint):.0f}"]]
    for name, recipe in RECIPES.items():
        stages, tag = [first], name.replace(", ", "_").replace(" ", "_")
        for cfg in LATER:
            stages.append(stage(cfg, tag, stages[-1]["ckpt"], budget, options(recipe, cfg, few)))
        rows.append(row(name, stages))
        print(f"\n{budget} iterations a stage, {3 * budget} jointly:\n\n{table(rows)}", flush=True)
    return int(rows[1][7] != "the same bits")


if __name__ == "__main__":
    sys.exit(main())
