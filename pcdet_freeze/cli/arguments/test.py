"""Evaluate one checkpoint (--ckpt), or all checkpoints of a run as they appear (--eval_all)."""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.flags import add_run_options, add_set
from pcdet_freeze.cli.common.help import DETECTOR, STAGE1, Examples

EXAMPLES: Examples = (
    ("evaluate the checkpoint that the first example of `train` writes", f"{STAGE1} --ckpt {DETECTOR}"),
    ("every checkpoint of that run, without waiting for more", f"{STAGE1} --eval_all --max_waiting_mins 0"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """OpenPCDet's flags, and a few more."""
    add = parser.add_argument
    add_run_options(parser)
    add("--eval_tag", default="default", help="name of this evaluation's folder")
    add("--eval_all", action="store_true", help="every checkpoint of --ckpt_dir, waiting for new ones")
    add("--ckpt_dir", help="folder of checkpoints for --eval_all; default: the run's own")
    add("--max_waiting_mins", type=float, default=30, help="minutes to wait for the next checkpoint")
    add("--infer_time", action="store_true", help="log the time spent in the model")
    add_set(parser)
