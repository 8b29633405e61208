"""What --sync_bn needs."""

from __future__ import annotations

import torch
from torch import nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan, is_frozen
from pcdet_freeze.freezing.paths import is_within, match


def check_sync_bn(model: nn.Module, device: torch.device, plan: FreezePlan) -> None:
    """ConfigError where a SyncBatchNorm would run live on a CPU, now or later, which torch cannot do."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    freed = [path for phase in plan.schedule for name in phase.train for path in match(model, name).paths]
    live = [n for n, m in norms.items() if not is_frozen(m) or any(is_within(n, path) for path in freed)]
    if live and device.type != "cuda":
        raise ConfigError(
            f"--sync_bn needs CUDA for every norm layer that is not frozen to the end, but the device is "
            f"{device} and {len(live)} are live: {', '.join(live[:4])}. Leave --sync_bn out, or freeze them."
        )
