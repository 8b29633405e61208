"""Run a model over point files (.bin, .npy, .pcd, .las), or over frames of its test set, and write pictures.

Needs no labels and no display. --before shows what a training changed: green boxes are equal in every bit.
--view shows the frames in 3D in the browser instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import CFG_HELP, add_cfg, add_set, add_trust, positive, whole
from pcdet_freeze.cli.common.help import DETECTOR, STAGE1, Examples

SUFFIXES = (".bin", ".npy", ".pcd", ".las", ".laz")
COLORS = ("height", "intensity", "class")
EXAMPLES: Examples = (
    ("pictures of three test frames", f"{STAGE1} --ckpt {DETECTOR} --frames 3"),
    (
        "pictures of point files of your own",
        "--cfg_file kitti_models/pointpillar.yaml --ckpt kitti.pth --data_path scans --ext .bin",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the frames and the folder of the pictures; the first four flags are OpenPCDet's."""
    add = parser.add_argument
    add_cfg(parser)
    add("--ckpt", required=True, help="checkpoint of that model")
    frames = parser.add_mutually_exclusive_group(required=True)
    frames.add_argument("--data_path", type=Path, help="point file, or folder of point files")
    frames.add_argument("--frames", type=whole(1), help="number of frames of the config's test set")
    add("--ext", help=f"suffix of the files in a folder; default: {', '.join(SUFFIXES)}")
    add("--out", type=Path, default=Path("output/demo"), help="folder of the pictures; default: output/demo")
    add("--before", help="a former checkpoint, drawn beside the other; boxes that it has too are green")
    add("--before_cfg_file", help=f"{CFG_HELP}, of that checkpoint; default: that of --cfg_file")
    add("--score", type=float, default=0.3, help="boxes with a lower score are not drawn; default 0.3")
    add("--color", choices=COLORS, default="height", help="colour of the points; default: height")
    add("--intensity_scale", type=positive, default=1.0,
        help="intensity that the training knows as 1, such as 255; default 1")  # fmt: skip
    add("--view", action="store_true", help="3D view in the browser, in place of the pictures")
    add("--port", type=whole(0), help="port of the view; default 8080, or the next free one")
    add("--host", help="address of the view; default 127.0.0.1: this machine only")
    add("--no_browser", action="store_true", default=None,
        help="print the address of the view, and open no window")  # fmt: skip
    add("--device", help="cpu, cuda or cuda:N; default: CUDA if available")
    add_trust(parser)
    add_set(parser)
