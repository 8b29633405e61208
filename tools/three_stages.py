"""Three stages on simulated scenes: a detector, then segmentation, then lanes; what is there stays as it is.

    python tools/three_stages.py                 # 1400 iterations; the time is printed at the end
    python tools/three_stages.py --quick         # a few minutes: the path, not the quality

Every step is a command that a user would type; it is printed before it runs. The table at the end shows
each task after each stage, and whether the detector's outputs are the same to the bit. A short training
without the list shows that they would not be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from pcdet_freeze.evaluation.stage_table import stage_table

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"1 detection": "stage1_detect", "2 segmentation": "stage2_segment", "3 lanes": "stage3_lane"}
DETECTION = ("dense_head", "pred_boxes", "pred_scores", "pred_labels")
QUICK = ["DATA_CONFIG.NUM_SCENES.train", "8", "DATA_CONFIG.NUM_SCENES.test", "4"]


def say(*command: str, check: bool = True) -> int:
    """Print a command as a user would type it and run it; its exit code, or the end where it failed."""
    print("\n$ python " + " ".join(f'"{c}"' if c[0] in "[{" else c for c in command) + "\n", flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    return sys.exit(code) if code and check else code


def path(cfg: str) -> str:
    """The config file, as a user would type it."""
    return f"cfgs/synthetic_models/{cfg}.yaml"


def train(
    out: Path, cfg: str, tag: str, start: str | None, options: list[str], few: list[str]
) -> dict[str, Any]:
    """Train from the checkpoint ``start``; the run's figures, its last checkpoint, its detector's digests."""
    given = ["--pretrained_model", start] if start else []
    say("tools/train.py", "--cfg_file", path(cfg), "--output_dir", str(out), "--extra_tag", tag,
        "--fix_random_seed", "--workers", "1", "--logger_iter_interval", "25", *given, *options)  # fmt: skip
    run = out / "synthetic_models" / cfg / tag
    ckpt = str(max(run.glob("ckpt/checkpoint_epoch_*.pth"), key=lambda file: file.stat().st_mtime))
    figures = json.loads((run / "run.json").read_text()) | {"ckpt": ckpt}
    for result in run.glob("eval/**/result.json"):
        figures |= json.loads(result.read_text())
    file = run / "digest.json"
    say("-m", "pcdet_freeze", "digest", "--cfg_file", path(cfg), "--ckpt", ckpt, "--out", str(file),
        *(["--set", *few] if few else []))  # fmt: skip
    found = json.loads(file.read_text())
    return figures | {"detector": [found[name] for name in DETECTION], "boxes": found["pred_boxes"]["count"]}


def main() -> int:
    """Stages, control, proof, table; exit code 1 where the detector changed, or never could have."""
    parser = argparse.ArgumentParser(description="Detection, then segmentation, then lanes.")
    parser.add_argument("--output_dir", default="output/demo", help="emptied first")
    parser.add_argument("--quick", action="store_true", help="few steps on few scenes")
    args = parser.parse_args()
    out, begin, few = Path(args.output_dir).resolve(), time.monotonic(), QUICK if args.quick else []
    shutil.rmtree(out / "synthetic_models", ignore_errors=True)

    done: dict[str, dict[str, Any]] = {}
    for name, cfg in STAGES.items():
        start = list(done.values())[-1]["ckpt"] if done else None
        options = [*(["--max_iters", "4"] if few else []), *(["--set", *few] if few else [])]
        done[name] = train(out, cfg, "demo", start, options, few)
    runs = list(done.values())
    free = ["--max_iters", "4", "--num_epochs_to_eval", "0", "--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", "[]"]
    control = train(out, "stage2_segment", "control", runs[0]["ckpt"], [*free, *few], few)
    kept = [say("-m", "pcdet_freeze", "verify", a["ckpt"], b["ckpt"], check=False) for a, b in pairwise(runs)]
    say("-m", "pcdet_freeze", "baselines", "--cfg_file", path("stage3_lane"), "--out",
        str(out / "baselines.json"), *(["--set", *few] if few else []))  # fmt: skip

    same = [run["detector"] == runs[0]["detector"] for run in (*runs[1:], control)]
    verdict = ["", *("the same" if yes else "CHANGED" for yes in same[:2]), ""]
    columns = {**done, "no network": json.loads((out / "baselines.json").read_text())}
    print("\n" + stage_table(columns, [("the detector's outputs, bit for bit", verdict)]))
    print(f"4 iterations of stage 2 without the list: {'THE SAME' if same[2] else 'they change'}")
    print(f"\ndemo: {time.monotonic() - begin:.0f} s, installation apart")
    return int(any(kept) or same != [True, True, False] or not (few or runs[0]["boxes"]))


if __name__ == "__main__":
    sys.exit(main())
