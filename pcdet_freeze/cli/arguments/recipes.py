"""Train the same three tasks by five recipes on one budget, and compare what each keeps and learns.

Stage 1 (detection) is trained once; every recipe but the first continues from its checkpoint with
segmentation, then with lanes. The first one trains all three tasks jointly, for as many iterations as three
stages have.
"""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.flags import whole
from pcdet_freeze.cli.common.help import Examples

TRUNKS = {"pillars": "", "shared": "shared_"}
"""what the branches share with detection: the pillar encoder, or backbone_2d.blocks and deblocks too"""
EXAMPLES: Examples = (
    ("few iterations on few scenes, to see that it runs", "--quick"),
    ("tasks that share the trunk of the detector", "--trunk shared --max_iters 100"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, and how much to train."""
    parser.add_argument(
        "--output_dir", default="output/recipes", help="output folder; existing results are deleted"
    )
    parser.add_argument(
        "--trunk",
        choices=TRUNKS,
        default="pillars",
        help="what the tasks share: the pillar encoder (pillars), or backbone_2d.blocks and deblocks as well",
    )
    parser.add_argument("--stage1", help="checkpoint of stage1_detect to start from; default: trains one")
    parser.add_argument("--batch_size", type=whole(1), default=4, help="scenes in an iteration; default 4")
    parser.add_argument("--max_iters", type=whole(1), default=100, help="iterations of each stage")
    parser.add_argument("--quick", action="store_true", help="4 iterations on few scenes: not the quality")
