"""Evaluate one checkpoint (--ckpt), or all checkpoints of a run as they appear (--eval_all)."""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.exit_code import exit_code
from pcdet_freeze.cli.common.flags import add_run_options, add_set, options_of
from pcdet_freeze.engine.run_context import EvalOptions
from pcdet_freeze.engine.train_api import evaluate, evaluate_run


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


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    options = options_of(EvalOptions, args)
    call = evaluate_run if args.eval_all else evaluate
    return exit_code(lambda: call(args.cfg_file, overrides=args.set_cfgs, **options), args.verbose)
