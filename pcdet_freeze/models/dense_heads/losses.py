"""Loss terms of the dense heads. All of them are computed in float32, also under autocast."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pcdet_freeze.models.dense_heads.center_targets import CenterTargets
from pcdet_freeze.ops.boxes import limit_period


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Elementwise focal loss on logits; ``targets`` are 0 or 1 (arXiv:1708.02002, equation 5)."""
    logits, targets = logits.float(), targets.float()
    probability = logits.sigmoid()
    error = targets + probability - 2 * targets * probability
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return weight * error.pow(gamma) * entropy


def smooth_l1(difference: Tensor, beta: float = 1.0 / 9.0) -> Tensor:
    """Elementwise smooth L1: quadratic below ``beta``, linear above (arXiv:1504.08083, eq. 3, scaled)."""
    size = difference.abs()
    return torch.where(size < beta, 0.5 * size.square() / beta, size - 0.5 * beta)


def replace_nan_targets(predicted: Tensor, target: Tensor) -> Tensor:
    """``target`` with NaN replaced by the prediction, which gives a loss and a gradient of zero."""
    return torch.where(torch.isnan(target), predicted.detach(), target)


def sine_difference(predicted: Tensor, target: Tensor) -> Tensor:
    """Difference of residuals (..., 7 + C), with sin(a - b) instead of a - b for the heading in column 6.

    A box and the same box rotated by pi have the same loss; the direction classifier distinguishes them
    (SECOND, 3.2.2). It is computed as sin(a)cos(b) - cos(a)sin(b), which has the rounding of the published
    implementation.
    """
    turn, turn_t = predicted[..., 6:7], target[..., 6:7]
    sine = torch.sin(turn) * torch.cos(turn_t) - torch.cos(turn) * torch.sin(turn_t)
    plain = predicted - target
    return torch.cat([plain[..., :6], sine, plain[..., 7:]], dim=-1)


def direction_bins(headings: Tensor, offset: float, bins: int) -> Tensor:
    """Sector of each heading, of ``bins`` equal ones from ``offset``: (N,) radians -> (N,) int64."""
    turned = limit_period(headings - offset, 0, 2 * math.pi)
    return torch.floor(turned / (2 * math.pi / bins)).long().clamp(0, bins - 1)


def heatmap_loss(
    logits: Tensor, heatmaps: Tensor, alpha: float = 2.0, beta: float = 4.0, peaks: Tensor | None = None
) -> Tensor:
    """Focal loss of heatmaps (B, classes, H, W), divided by the number of peaks (at least 1).

    CornerNet's variant (arXiv:1808.01244, equation 1; arXiv:1904.07850, equation 1): around a peak, the
    penalty is reduced by (1 - target)^beta. Probabilities are clamped to [1e-4, 1 - 1e-4].

    Args:
        peaks: number of peaks to divide by; default: that of ``heatmaps``.
    """
    probability = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = heatmaps == 1
    positive = torch.where(peak, probability.log() * (1 - probability).pow(alpha), 0.0)
    negative = (1 - probability).log() * probability.pow(alpha) * (1 - heatmaps).pow(beta)
    number = peak.sum() if peaks is None else peaks
    return -(positive.sum() + torch.where(peak, 0.0, negative).sum()) / number.clamp(min=1)


def center_box_loss(codes: Tensor, targets: CenterTargets, boxes: Tensor | None = None) -> Tensor:
    """L1 loss of each column of the box code at the cells of objects, divided by their number (at least 1).

    Args:
        codes: (B, columns, H, W) predictions.
        boxes: number of objects to divide by; default: that of ``targets``.

    Returns:
        (columns,). A NaN target (an unknown velocity) gives no loss.
    """
    sample, slot = targets.objects()
    cell = targets.inds[sample, slot]
    predicted = codes.flatten(2)[sample, :, cell].float()
    target = replace_nan_targets(predicted, targets.target_boxes[sample, slot])
    number = max(len(sample), 1) if boxes is None else boxes.clamp(min=1)
    return (predicted - target).abs().sum(dim=0) / number
