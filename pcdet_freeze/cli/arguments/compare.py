"""Compare runs: what each froze, its metrics and cost, and the config keys in which they differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.help import CKPT, DETECTOR, SEGMENTATION, Examples

RUNS = " ".join(file.removesuffix(f"/{CKPT}") for file in (DETECTOR, SEGMENTATION))
EXAMPLES: Examples = (
    ("two runs", f"{RUNS}"),
    ("the same as a page", f"{RUNS} --html compare.html"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and how the comparison is written."""
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN",
        help="folder of a training (with report.json), or a folder above exactly one")  # fmt: skip
    add("--html", type=Path, metavar="FILE", help="write the comparison as one self-contained page, too")
    add("--json", action="store_true", help="print JSON in place of the table")
