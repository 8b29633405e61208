"""Batch norm for sparse batches with very few rows."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def batch_norm(norm: nn.Module, features: Tensor) -> Tensor:
    """``norm(features)``, also in train mode with fewer than two values per channel.

    Fewer than two values have no variance. In this case the running statistics are used and not updated. A
    SyncBatchNorm is always called, because other ranks wait for it.

    Args:
        norm: a batch norm with running statistics.
        features: (N, C) or (N, C, L).
    """
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    values = features.numel() // features.shape[1]
    if values > 1 or not norm.training or isinstance(norm, nn.SyncBatchNorm):
        return norm(features)
    running = norm.running_mean, norm.running_var
    return F.batch_norm(features, *running, norm.weight, norm.bias, training=False, eps=norm.eps)
