"""The command ``train``; its flags and help: ``arguments/train.py``."""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.arguments.train import IGNORED
from pcdet_freeze.cli.common.exit_code import exit_code
from pcdet_freeze.cli.common.flags import options_of
from pcdet_freeze.engine.run_context import TrainOptions
from pcdet_freeze.engine.train_api import train


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    options, notes = options_of(TrainOptions, args), tuple(ignored_flags(args))
    return exit_code(lambda: train(args.cfg_file, args.set_cfgs, notes=notes, **options), args.verbose)


def ignored_flags(args: argparse.Namespace) -> list[str]:
    """One line for each given flag of OpenPCDet that has no effect."""
    given = [name for name in IGNORED if str(getattr(args, name, None)) not in ("None", "False")]
    return [f"--{name} has no effect: {IGNORED[name]}" for name in given]
