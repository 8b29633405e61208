"""Look for problems before a training: packages, machine, a config with its data, an OpenPCDet beside it.

Exit code 0: no problem; 1: a problem; 2: no problem, but a check could not be made, or wrong usage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import add_set
from pcdet_freeze.cli.common.help import Examples

EXAMPLES: Examples = (
    ("packages and machine", ""),
    ("a config and its data as well", "--cfg_file kitti_models/pointpillar.yaml"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is examined, and which checks are made."""
    add = parser.add_argument
    add("--cfg_file", help="config whose keys, data and run folder are checked, too")
    add("--ckpt", type=Path, help="checkpoint that is read, too")
    add(
        "--openpcdet",
        type=Path,
        metavar="FOLDER",
        help="an OpenPCDet; default: the one in or beside the working directory",
    )
    add("--output_dir", type=Path, default=Path("output"), help="folder for all runs; default: output")
    add("--extra_tag", default="default", help="name of the run's folder")
    add("--workers", type=int, default=4, help="loader processes of the training; default 4")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", nargs="+", metavar="ID", default=[], help="make these checks alone")
    chosen.add_argument("--skip", nargs="+", metavar="ID", default=[], help="leave these checks out")
    add("--list", action="store_true", help="print ids, severities and what each check looks at")
    add("--json", action="store_true", help="print JSON in place of the text")
    add_set(parser)
