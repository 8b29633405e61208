"""Show, without training, what a config freezes, for each module, and warn of drift.

Exit code 0; 1 where a training would stop with an error before its first step.
"""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.flags import add_cfg, add_set, add_trust, whole
from pcdet_freeze.cli.common.help import DETECTOR, STAGE2, Examples

EXAMPLES: Examples = (
    ("what a config freezes, and what its losses reach", STAGE2),
    ("more of the tree, with the weights of the first stage", f"{STAGE2} --depth 3 --ckpt {DETECTOR}"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The config, and how much of it to show."""
    add = parser.add_argument
    add_cfg(parser)
    add("--ckpt", help="checkpoint whose tensors are loaded where name and shape fit")
    add_trust(parser)
    add(
        "--depth",
        type=whole(1),
        default=2,
        help="levels of modules to show; default 2",
    )
    add(
        "--batch_size",
        type=whole(1),
        default=2,
        help="samples of the batch that the losses are traced with",
    )
    add("--device", help="cpu or cuda; default: CUDA if available")
    add("--json", action="store_true", help="print JSON in place of the table")
    add_set(parser)
