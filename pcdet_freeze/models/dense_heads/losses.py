"""Loss terms of the anchor heads. All of them count in float32, also under autocast."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pcdet_freeze.ops.boxes import limit_period


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Elementwise focal loss on logits; ``targets`` is 0 or 1 (Lin et al., 2017, arXiv:1708.02002, eq. 5)."""
    logits, targets = logits.float(), targets.float()
    chance = logits.sigmoid()
    missed = targets + chance - 2 * targets * chance
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return weight * missed.pow(gamma) * entropy


def smooth_l1(difference: Tensor, beta: float = 1.0 / 9.0) -> Tensor:
    """Elementwise: quadratic below ``beta``, linear above (arXiv:1504.08083, eq. 3, scaled)."""
    size = difference.abs()
    return torch.where(size < beta, 0.5 * size.square() / beta, size - 0.5 * beta)


def only_wanted(predicted: Tensor, target: Tensor) -> Tensor:
    """``target``, with the prediction itself where it is NaN, and so asks for nothing."""
    return torch.where(torch.isnan(target), predicted.detach(), target)


def sine_difference(predicted: Tensor, target: Tensor) -> Tensor:
    """Residuals' difference, with sin(a - b) in place of a - b for the heading in column 6.

    A box and the same box turned by pi then agree; the direction classifier tells them apart (SECOND,
    3.2.2). It is written as sin(a)cos(b) - cos(a)sin(b), as the published figures are.
    """
    turn, turn_t = predicted[..., 6:7], target[..., 6:7]
    sine = torch.sin(turn) * torch.cos(turn_t) - torch.cos(turn) * torch.sin(turn_t)
    plain = predicted - target
    return torch.cat([plain[..., :6], sine, plain[..., 7:]], dim=-1)


def direction_bins(headings: Tensor, offset: float, bins: int) -> Tensor:
    """Which of ``bins`` equal sectors from ``offset`` on holds each heading: (N,) radians -> (N,) int64."""
    turned = limit_period(headings - offset, 0, 2 * math.pi)
    return torch.floor(turned / (2 * math.pi / bins)).long().clamp(0, bins - 1)
