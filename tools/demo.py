"""The main job on the embedded default: train a detector, freeze a part of it, train on, show what changed.

    python tools/demo.py                 # about ten minutes on two CPU cores
    python tools/demo.py --quick         # a minute: the path, not the quality

Both stages are the commands that a user would type; they are printed before they run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CFG = "cfgs/synthetic_models/pointpillar.yaml"
FREEZE = "[vfe, backbone_2d.blocks]"
SCORE = "Car_3d_0.50/moderate_R40"


def say(*command: str) -> int:
    """Print a command as a user would type it, run it, return its exit code."""
    print("\n$ python " + " ".join(f'"{c}"' if c[0] == "[" else c for c in command) + "\n", flush=True)
    return subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode


def train(out: Path, tag: str, *more: str) -> dict[str, Any]:
    """Train one stage; return its figures and its last checkpoint."""
    code = say("tools/train.py", "--cfg_file", CFG, "--output_dir", str(out), "--extra_tag", tag,
               "--fix_random_seed", "--workers", "1", "--logger_iter_interval", "25", *more)  # fmt: skip
    if code != 0:
        sys.exit(code)
    run = out / "synthetic_models" / "pointpillar" / tag
    result = max(run.glob("eval/**/result.json"), key=lambda path: path.stat().st_mtime)
    newest = max(run.glob("ckpt/checkpoint_epoch_*.pth"), key=lambda path: path.stat().st_mtime)
    figures = json.loads((run / "run.json").read_text())
    return {"ckpt": newest, "ap": json.loads(result.read_text())[SCORE], **figures}


def table(before: dict[str, Any], after: dict[str, Any], intact: bool, seconds: float) -> str:
    """The short table at the end."""
    runs = (before, after)
    rows = [
        ("", "trained", f"then frozen {FREEZE}"),
        ("iterations", str(before["iterations"]), str(after["iterations"])),
        ("Car AP 3D R40, moderate, IoU 0.5", f"{before['ap']:.1f}", f"{after['ap']:.1f}"),
        ("seconds an iteration (median)", *(f"{r['seconds_per_iteration']['batch']:.3f}" for r in runs)),
        ("frozen state, bit for bit", "", "intact" if intact else "CHANGED"),
    ]
    lines = [f"{name:<36}{left:>12}   {right}" for name, left, right in rows]
    return "\n".join(["", *lines, "", f"demo: {seconds:.0f} s, installation apart"])


def main() -> int:
    """Run both stages, verify, print the table; exit code 1 where the frozen state changed."""
    parser = argparse.ArgumentParser(description="Train, freeze, train on.")
    parser.add_argument("--output_dir", default="output/demo", help="emptied first")
    parser.add_argument("--quick", action="store_true", help="few steps on few scenes")
    args = parser.parse_args()
    out, begin = Path(args.output_dir).resolve(), time.monotonic()
    shutil.rmtree(out / "synthetic_models", ignore_errors=True)
    few = ["DATA_CONFIG.NUM_SCENES.train", "8", "DATA_CONFIG.NUM_SCENES.test", "4"] if args.quick else []
    short = ["--max_iters", "4" if args.quick else "150"]

    before = train(out, "trained", *(short if args.quick else []), "--set", "OPTIMIZATION.LR", "0.003", *few)
    after = train(out, "frozen", *short, "--pretrained_model", str(before["ckpt"]), "--set",
                  "MODEL.NOT_TRAIN_IN_MULTI_TASK", FREEZE, "OPTIMIZATION.LR", "0.0005", *few)  # fmt: skip
    code = say("-m", "pcdet_freeze", "verify", str(before["ckpt"]), str(after["ckpt"]))
    print(table(before, after, code == 0, time.monotonic() - begin))
    return code


if __name__ == "__main__":
    sys.exit(main())
