"""Print the shortest freeze list that keeps the outputs of given heads bit for bit, and what it costs.

Exit code 0; 1 where the list leaves nothing to train, or a name is wrong.
"""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.flags import add_cfg, add_set, whole
from pcdet_freeze.cli.common.help import STAGE2, STAGE3, Examples

EXAMPLES: Examples = (
    ("what to freeze so that the detections stay as they are", f"{STAGE2} --keep dense_head"),
    (
        "the same for two tasks, without measuring a step",
        f"{STAGE3} --keep dense_head --keep segment_head --rounds 0",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the heads that are to stay as they are, and how often a step is timed."""
    add = parser.add_argument
    add_cfg(parser)
    add("--keep", action="append", required=True, metavar="HEAD",
        help="a head whose outputs must not change, such as dense_head; may be repeated")  # fmt: skip
    add("--rounds", type=whole(0), default=3, help="timed training steps; 0: none; default 3")
    add("--batch_size", type=whole(1), help="frames of such a step; default OPTIMIZATION.BATCH_SIZE_PER_GPU")
    add("--device", default="cpu", help="where the step is timed: cpu, cuda or cuda:N; default cpu")
    add("--json", action="store_true", help="print JSON in place of the text")
    add_set(parser)
