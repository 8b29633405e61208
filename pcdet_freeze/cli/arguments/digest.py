"""Print a digest of each output of a checkpoint over the test frames: equal digests mean equal bits.

Of stages that share a detector, `dense_head`, `pred_boxes`, `pred_scores`, `pred_labels` must be equal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import add_cfg, add_set, add_trust, whole
from pcdet_freeze.cli.common.help import DETECTOR, SEGMENTATION, STAGE1, STAGE2, Examples

EXAMPLES: Examples = (
    ("outputs of the detector", f"{STAGE1} --ckpt {DETECTOR}"),
    ("outputs after the next stage, to a file as well", f"{STAGE2} --ckpt {SEGMENTATION} --out digests.json"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the frames."""
    add_cfg(parser)
    parser.add_argument("--ckpt", required=True, help="checkpoint of that model")
    parser.add_argument(
        "--batch_size", type=whole(1), default=4, help="frames per forward; digests depend on it"
    )
    parser.add_argument("--device", help="cpu or cuda; default: CUDA if available")
    add_trust(parser)
    parser.add_argument("--out", type=Path, help="write the digests to this JSON file")
    add_set(parser)
