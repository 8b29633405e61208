"""Norm of the gradient of each task's loss with respect to the shared trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def trunk_of(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Trainable parameters of all modules except heads."""
    shared = [module for module in modules if not hasattr(module, "get_loss")]
    return [p for module in shared for p in module.parameters() if p.requires_grad]


def task_gradient_norms(losses: Mapping[str, Tensor], trunk: Sequence[nn.Parameter]) -> dict[str, float]:
    """L2 norm of the gradient of each head's (weighted) loss with respect to ``trunk``.

    It runs one backward pass per task and retains the graph. No ``.grad`` is modified, and the hooks of
    DistributedDataParallel are not called. The norm is zero for a loss that does not reach the trunk; the
    result is empty if the trunk is not trainable.
    """
    if not trunk:
        return {}
    return {name: _norm(loss, trunk) for name, loss in losses.items()}


def _norm(loss: Tensor, trunk: Sequence[nn.Parameter]) -> float:
    if not loss.requires_grad:
        return 0.0
    found = torch.autograd.grad(loss, list(trunk), retain_graph=True, allow_unused=True)
    norms = [grad.norm() for grad in found if grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0
