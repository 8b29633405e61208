"""The command ``test``; its flags and help: ``arguments/test.py``."""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.exit_code import exit_code
from pcdet_freeze.cli.common.flags import options_of
from pcdet_freeze.engine.run_context import EvalOptions
from pcdet_freeze.engine.train_api import evaluate, evaluate_run


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    options = options_of(EvalOptions, args)
    call = evaluate_run if args.eval_all else evaluate
    return exit_code(lambda: call(args.cfg_file, overrides=args.set_cfgs, **options), args.verbose)
