"""How hard each task pulls at what they share: the norm of its loss's gradient at the trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def trunk_of(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Trainable parameters of the modules that are no heads."""
    shared = [module for module in modules if not hasattr(module, "get_loss")]
    return [p for module in shared for p in module.parameters() if p.requires_grad]


def task_gradient_norms(losses: Mapping[str, Tensor], trunk: Sequence[nn.Parameter]) -> dict[str, float]:
    """Head -> L2 norm of the gradient of its loss (weighed, as it enters the sum) at ``trunk``.

    One backward pass a task through a graph that stays; no ``.grad`` is touched, and DistributedDataParallel
    does not notice. Zero for a loss that reaches nothing of it; empty where the trunk does not train.
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
