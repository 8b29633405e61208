"""Evaluate checkpoints.

One:             python tools/test.py --cfg_file cfgs/kitti_models/pointpillar.yaml --ckpt output/.../x.pth
All of a run:    python tools/test.py --cfg_file ... --extra_tag stage2 --eval_all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze.engine import build
from pcdet_freeze.engine.arguments import test_parser
from pcdet_freeze.engine.checkpoint.io import epoch_of
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.run_tool import run_tool
from pcdet_freeze.engine.testing.watch_checkpoints import evaluate_all
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.safe_torch_load import load_checkpoint


def test(args: argparse.Namespace) -> None:
    """Build, load, evaluate."""
    if not (args.ckpt or args.eval_all or args.pretrained_model):
        raise ConfigError("tools/test.py needs weights to evaluate: give --ckpt FILE, or --eval_all")
    run = build.start_run(args, "eval")
    data = build.build_data(run, training=False)
    model = build.build_model(run, data.dataset)
    if args.eval_all:
        folder = run.folders.eval / f"eval_all_{args.eval_tag}"
        ckpt_dir = Path(args.ckpt_dir) if args.ckpt_dir else run.folders.ckpt
        evaluate = build.Evaluation(run, data, folder.name)
        waiting = {"start_epoch": args.start_epoch, "max_waiting_mins": args.max_waiting_mins}
        evaluate_all(model, evaluate, ckpt_dir, folder, run.logger, **waiting)
        return
    name: int | str = "pretrained"
    if args.ckpt:
        state = load_checkpoint(args.ckpt, args.trust_checkpoint)["model_state"]
        load_model_state(model, state, args.ckpt)
        number = epoch_of(Path(args.ckpt))
        name = number if number >= 0 else Path(args.ckpt).stem
    build.Evaluation(run, data, tag=args.eval_tag)(model, name)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 after an error that was explained; 130 after Ctrl-C."""
    return run_tool(test, test_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
