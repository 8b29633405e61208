"""Limits and defaults of options; without torch, since the flags of the commands are built from them."""

from __future__ import annotations

import os

LOWEST = {
    "batch_size": 1,
    "workers": 0,
    "start_epoch": 0,
    "epochs": 1,
    "max_iters": 1,
    "ckpt_save_interval": 1,
    "max_ckpt_save_num": 1,
    "num_epochs_to_eval": 0,
    "logger_iter_interval": 1,
}
"""option -> its smallest value"""


def default_workers() -> int:
    """Loader processes of a run by default."""
    return min(4, os.cpu_count() or 1)
