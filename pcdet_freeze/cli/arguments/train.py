"""Train a model; MODEL.NOT_TRAIN_IN_MULTI_TASK names the modules to freeze. An interrupted run resumes."""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.flags import add_number, add_run_options, add_set
from pcdet_freeze.cli.common.help import DETECTOR, STAGE1, STAGE2, Examples

IGNORED = {
    "max_waiting_mins": "the checkpoints to evaluate exist when the training ends",
    "use_tqdm_to_record": "the log has its lines beside the progress bar",
    "wo_gpu_stat": "the state of the GPU is never logged",
    "merge_all_iters_to_one_epoch": "each epoch draws every frame once, in a new order",
}
"""flags of OpenPCDet's tools/train.py that have no effect here -> why"""
EXAMPLES: Examples = (
    ("detection on simulated scenes, which are rendered first", f"{STAGE1} --max_iters 100"),
    (
        "then segmentation; the detector is frozen and keeps its outputs",
        f"{STAGE2} --pretrained_model {DETECTOR} --max_iters 100",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """OpenPCDet's flags, and a few more."""
    add = parser.add_argument
    add_run_options(parser)
    add_number(parser, "epochs", "epochs; default OPTIMIZATION.NUM_EPOCHS")
    add_number(parser, "max_iters", "length of the run in iterations, for the schedule too")
    add("--sync_bn", action="store_true", help="SyncBatchNorm over all processes (CUDA)")
    add("--fix_random_seed", action="store_true", help="seed 666 instead of a random one")
    add_number(parser, "ckpt_save_interval", "epochs between two checkpoints", 1)
    add_number(parser, "max_ckpt_save_num", "number of checkpoint_epoch_N.pth files to keep", 30)
    add("--ckpt_save_time_interval", type=float, default=300, help="seconds between two latest_model.pth")
    add_number(parser, "num_epochs_to_eval", "evaluate the checkpoints of the last N epochs; 0: none", 1)
    add_number(parser, "logger_iter_interval", "iterations between two log lines", 50)
    add("--no_savings", action="store_true", help="do not measure what freezing saves")
    add("--no_check", action="store_true", help="do not check some frames of the data at the start")
    add("--use_amp", action="store_true", help="mixed precision: float16 on CUDA, bfloat16 on CPU")
    add("--tracker", metavar="NAME",
        help="wandb, mlflow, both with a comma, or none; default OPTIMIZATION.TRACKER")  # fmt: skip
    add("--requeue", action="store_true", help="after SIGUSR1: run `scontrol requeue $SLURM_JOB_ID`")
    add("--max_waiting_mins", type=float, help="no effect; accepted for compatibility with OpenPCDet")
    for name in list(IGNORED)[1:]:
        add(f"--{name}", action="store_true", help="no effect; accepted for compatibility with OpenPCDet")
    add_set(parser)
