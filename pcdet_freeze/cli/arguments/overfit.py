"""Train the three stages of a data set on few frames, and compare each task with what the labels allow.

Detection, segmentation and lanes are trained in turn, each with the earlier tasks frozen, by the configs
stage1_detect, stage2_segment and stage3_lane of one folder. The test frames are among the training frames:
the scores show that points, labels and losses fit each other, not how well a model generalises. Exit code 1
where a bar is missed, or a bit of the detections changes.
"""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.flags import add_set, whole
from pcdet_freeze.cli.common.help import Examples

EXAMPLES: Examples = (
    ("PandaSet", "--models pandaset_models --set DATA_CONFIG.DATA_PATH /data/pandaset"),
    (
        "few iterations on simulated scenes; the bars are not compared",
        "--models synthetic_models --max_iters 20",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which configs, where to write, and how much to train."""
    parser.add_argument(
        "--models", default="pandaset_models", help="folder of the three configs; default: pandaset_models"
    )
    parser.add_argument(
        "--output_dir", default="output/overfit", help="output folder; old runs of the stages are deleted"
    )
    parser.add_argument("--name", default="Car", help="class whose AP is compared; default: Car")
    parser.add_argument("--max_iters", type=whole(1), help="iterations a stage; the bars are not compared")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: CUDA if available")
    add_set(parser)
