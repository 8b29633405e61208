"""Logger, seeds, process group."""

import logging
import random

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def create_logger(log_file=None, rank=0, log_level=logging.INFO):
    logger = logging.getLogger(__name__)
    logger.setLevel(log_level if rank == 0 else "ERROR")
    for handler in [logging.StreamHandler(), *([logging.FileHandler(log_file)] if log_file else [])]:
        handler.setFormatter(logging.Formatter("%(levelname)s  %(message)s"))
        logger.addHandler(handler)
    logger.propagate = False
    return logger


def set_random_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def init_dist_pytorch(tcp_port, local_rank, backend="nccl"):
    if mp.get_start_method(allow_none=True) is None:
        mp.set_start_method("spawn")
    dist.init_process_group(backend=backend if torch.cuda.is_available() else "gloo")
    return dist.get_world_size(), dist.get_rank()
