"""OPTIMIZATION -> optimizer and scheduler."""

import numpy as np
import torch
from torch import nn

from .fastai_optim import OptimWrapper


def build_optimizer(model, optim_cfg):
    if optim_cfg.OPTIMIZER == "adam":
        return torch.optim.Adam(model.parameters(), lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY)
    assert optim_cfg.OPTIMIZER == "adam_onecycle"
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    norms = [module for module in leaves if isinstance(module, nn.BatchNorm1d | nn.SyncBatchNorm)]
    groups = []
    for chosen in ([module for module in leaves if module not in norms], norms):
        params = [param for module in chosen for param in module.parameters() if param.requires_grad]
        groups.append({"params": params, "lr": 0.0})
    return OptimWrapper(torch.optim.Adam(groups, betas=(0.9, 0.99)), wd=optim_cfg.WEIGHT_DECAY)


class OneCycle:
    """Rises and falls; hands numpy's numbers to the optimizer."""

    def __init__(self, optimizer, total_step, lr_max):
        self.optimizer, self.total_step, self.lr_max = optimizer, total_step, lr_max
        self.step(0)

    def step(self, step, epoch=None):
        if isinstance(self.optimizer, OptimWrapper):
            self.optimizer.lr = self.lr_max * (1.1 + np.cos(np.pi * step / self.total_step)) / 2


def build_scheduler(optimizer, total_iters_each_epoch, total_epochs, last_epoch, optim_cfg):
    return OneCycle(optimizer, total_iters_each_epoch * total_epochs, optim_cfg.LR), None
