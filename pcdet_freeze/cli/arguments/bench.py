"""Measure what freezing saves and costs in a training step: time, FLOPs, memory, checkpoint size."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdet_freeze.cli.common.flags import CFG_HELP, add_set, whole
from pcdet_freeze.cli.common.help import STAGE1, Examples

DEFAULT_CFG = "bench/pointpillar.yaml"
STDOUT = Path("-")
GRIDS = {"full": 0.16, "half": 0.32}
"""name -> metres along the sides of a pillar"""
FULL = ("none", "unfrozen", "bn_only", "requires_grad", "exact", "contiguous", "bf16_prefix", "cached")
"""variants that are measured by default on the full grid"""
VARIANTS = (
    "none", "none_ragged", "unfrozen", "bn_only", "requires_grad", "exact", "contiguous", "bf16_prefix",
    "bf16", "cached", "compile", "whole_maps", "none_bf16",
)  # fmt: skip
AGAINST = ("lightning", "timm")
WHAT = (
    "allocator", "baselines", "cache_size", "certificate", "empty_space", "evaluation", "guards", "hold",
    "loading", "operators", "roofline", "scaling", "step", "training",
)  # fmt: skip
EXAMPLES: Examples = (
    ("training steps with two modules frozen", "--freeze vfe,backbone_2d.blocks --rounds 3"),
    ("the whole training of a config", f"{STAGE1} --what training --iterations 60"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, on which model, how often."""
    parser.add_argument("--what", choices=WHAT, default="step", metavar="WHAT",
                        help="step: variants of a training step; hold: cost of eval-mode norm layers; "
                        "guards: cost of what docs/reliability.md promises; "
                        "certificate: its time for 60 M parameters; loading: frames a second of "
                        "the loader processes; operators: anchor targets and rotated IoU; scaling: more "
                        "or less frozen, more or fewer points, boxes and frames; baselines: segmentation and "
                        "lanes without a network; training: where the time of a whole training goes; "
                        "allocator: whole trainings with and without freed memory kept; evaluation: KITTI "
                        "AP of stored detections, post-processing of a frame; roofline: frames a second on "
                        "a GPU at best; empty_space: cells that no pillar reaches, and cache_size: bytes of "
                        "a cached frame, both on the test frames of the config")  # fmt: skip
    parser.add_argument("--cfg_file", help=f"{CFG_HELP}; default: {DEFAULT_CFG}")
    parser.add_argument(
        "--freeze",
        metavar="LIST",
        help="comma-separated modules to freeze; overrides MODEL.NOT_TRAIN_IN_MULTI_TASK",
    )
    parser.add_argument("--grid", choices=sorted(GRIDS), help="pillars of KITTI's size (full), or twice as "
                        "wide (half); default: those of the config")  # fmt: skip
    parser.add_argument("--variants", metavar="a,b",
                        help=f"which of {', '.join(VARIANTS)}; `none` is always included. Default: all, "
                        f"and with --grid full {', '.join(FULL)}")  # fmt: skip
    parser.add_argument("--against", default="", metavar="a,b",
                        help=f"also what other packages call freezing: {', '.join(AGAINST)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="interleaved rounds; default: 7, with --grid full 5")
    parser.add_argument("--batch_size", type=int, help="frames; default: OPTIMIZATION.BATCH_SIZE_PER_GPU")
    parser.add_argument("--points", type=whole(1), help="points in a random scene; default: 27500, or those "
                        "of DATA_CONFIG.RANDOM_SCENES")  # fmt: skip
    parser.add_argument("--own_frames", action="store_true", help="the first test frames of the config's "
                        "data set, with their labels, in place of random scenes (--what step)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes that load data (--what loading)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's operators")
    parser.add_argument("--json", nargs="?", type=Path, const=STDOUT, metavar="FILE",
                        help="the rows as data, to FILE; without one to the standard output")  # fmt: skip
    parser.add_argument("--iterations", type=whole(1), default=60,
                        help="length of a whole training (--what training, allocator)")  # fmt: skip
    parser.add_argument("--pretrained_model",
                        help="checkpoint that it starts from, where frozen modules need one")  # fmt: skip
    parser.add_argument("--scenes", type=whole(1), default=40,
                        help="training frames that --what baselines is fitted on")  # fmt: skip
    add_set(parser, last=False)
