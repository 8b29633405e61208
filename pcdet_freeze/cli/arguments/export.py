"""Write a PointPillar-type network as ONNX, from voxels to the raw outputs of its heads.

onnxruntime runs the file on a frame and must agree with torch. --against says whether a head is still that
of an earlier export, operator by operator and weight by weight.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import add_cfg, add_set, add_trust, whole
from pcdet_freeze.cli.common.help import DETECTOR, SEGMENTATION, STAGE1, STAGE2, Examples

EXAMPLES: Examples = (
    ("the detector", f"{STAGE1} --ckpt {DETECTOR} --out onnx"),
    (
        "the next stage; is its dense_head still that of the first export?",
        f"{STAGE2} --ckpt {SEGMENTATION} --out onnx_segment --against onnx",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the frame that is stored, and the folder."""
    add = parser.add_argument
    add_cfg(parser)
    add("--ckpt", required=True, help="checkpoint of that model")
    add("--out", type=Path, required=True, help="folder of the files")
    add(
        "--data_path", type=Path, help="point file of the stored frame; default: first frames of the test set"
    )
    add("--batch_size", type=whole(1), default=1, help="samples of a forward, fixed in the file; default 1")
    add("--against", type=Path, metavar="FOLDER", help="an earlier export: compare the heads that both have")
    add_trust(parser)
    add_set(parser)
