"""Join heads that were trained separately on the same frozen trunk into one checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import add_trust
from pcdet_freeze.cli.common.help import Examples

EXAMPLES: Examples = (
    (
        "add the segmentation that was trained on a frozen detector",
        "--trunk det.pth --take segment_head,backbone_2d.segblocks:seg.pth --out all.pth",
    ),
    (
        "add two tasks at once",
        "--trunk det.pth --take segment_head:seg.pth --take lane_head:lane.pth --out all.pth",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The trunk, the modules to take from other files, and the file to write."""
    parser.add_argument(
        "--trunk", required=True, metavar="DET.pth", help="checkpoint of everything that is not taken"
    )
    parser.add_argument("--take", required=True, action="append", metavar="NAME[,NAME...]:FILE.pth",
                        help="modules that come from FILE, e.g. segment_head,backbone_2d.segblocks:seg.pth; "
                        "may be given several times")  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="ALL.pth", help="file to write")
    add_trust(parser)
