"""Hit short trainings with random faults; exit code 1 if one is not survived, or changes the weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import whole
from pcdet_freeze.cli.common.help import Examples

EXAMPLES: Examples = (
    ("faults for five minutes", "--minutes 5"),
    ("trainings of two processes", "--minutes 5 --ranks 2"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, and what."""
    add = parser.add_argument
    add("--minutes", type=float, default=5, help="time for the faults; default 5")
    add("--ranks", type=whole(1), default=1, help="processes of each training, under torchrun if several")
    add("--max_iters", type=whole(10), default=40, help="length of a training in iterations")
    add("--workers", type=whole(0), default=1, help="loader processes of each rank")
    add("--seed", type=whole(0), default=0, help="of the faults")
    add("--output_dir", type=Path, help="folder for the trainings; default: a temporary one")
