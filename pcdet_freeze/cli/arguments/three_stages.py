"""Train detection, then segmentation, then lanes on simulated scenes; earlier tasks stay frozen.

Every step is a command that is printed before it runs; all run in this process, on scenes that are rendered
once. The table at the end shows each task after each stage, and whether the detector's outputs are bitwise
equal. A short training without the freeze list shows that they change without it.
"""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.help import Examples

EXAMPLES: Examples = (
    ("few steps on few scenes, to see that it runs", "--quick"),
    ("the figures of the README, and a page with pictures", "--output_dir output/three_stages"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, and how much to train."""
    parser.add_argument(
        "--output_dir", default="output/three_stages", help="output folder; existing results are deleted"
    )
    parser.add_argument("--quick", action="store_true", help="few steps on few scenes: not the quality")
