"""Read every frame of a data set and report what does not fit config, model or pretrained checkpoint.

Exit code 1 where a training would be pointless: no box of a class in range, no labels, unreadable frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import add_cfg, add_set, add_trust, whole
from pcdet_freeze.cli.common.help import STAGE1, Examples
from pcdet_freeze.engine.option_limits import default_workers

EXAMPLES: Examples = (
    ("the training frames of a config", "--cfg_file kitti_models/pointpillar.yaml"),
    ("the test frames, as JSON, without pictures", f"{STAGE1} --split test --json --pictures 0"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which data, what to compare them with, what to write."""
    add = parser.add_argument
    add_cfg(parser)
    add("--split", choices=["train", "test"], default="train", help="which frames; default: train")
    add("--pretrained_model", help="checkpoint whose training data are compared: range of the intensity")
    add_trust(parser)
    add("--workers", type=whole(0), default=default_workers(), help="processes that read frames")
    add("--json", action="store_true", help="print JSON in place of the report")
    add("--pictures", type=whole(0), default=4, help="pictures of the worst frames at most; default 4")
    add("--out", type=Path, default=Path("output/check_data"),
        help="folder of the pictures; default: output/check_data")  # fmt: skip
    add_set(parser)
