"""Norms of gradients and their clipping, without a wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GradientNorms:
    """L2 norms of the gradients of one step, as tensors on the device."""

    parameters: tuple[nn.Parameter, ...]
    """those that have a gradient, in the order of the optimizer's groups"""
    each: Tensor
    """(parameters,)"""
    total: Tensor
    """() of all gradients"""

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> GradientNorms:
        """Compute the norms as ``torch.nn.utils.clip_grad_norm_`` does, to the bit."""
        found = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not found:
            return cls((), torch.zeros(0), torch.zeros(()))
        grads = [p.grad for p in found]
        with torch.no_grad():
            norms = torch._foreach_norm(grads, 2.0)
            each = torch.stack([norm.to(grads[0].device) for norm in norms])
            return cls(tuple(found), each, torch.linalg.vector_norm(each, 2.0))

    @torch.no_grad()
    def clip(self, limit: float) -> None:
        """Scale the gradients to a total norm of at most ``limit``, as ``clip_grad_norm_`` does."""
        if self.parameters:
            factor = torch.clamp(limit / (self.total + 1e-6), max=1.0)
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], factor)


def clip_norm_of(optim_cfg: Mapping[str, Any]) -> float | None:
    """OPTIMIZATION.GRAD_NORM_CLIP; None (no clipping) where it is absent, null or not above zero."""
    value = optim_cfg.get("GRAD_NORM_CLIP")
    return float(value) if value is not None and value > 0 else None
