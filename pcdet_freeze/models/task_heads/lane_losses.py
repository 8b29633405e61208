"""Loss terms of the lane head. All of them count in float32, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_dice_loss(probabilities: Tensor, wanted: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice coefficient of all cells together, in V-Net's form with squares (arXiv:1606.04797, section 3).

    Args:
        probabilities: any shape, in [0, 1].
        wanted: the same shape, 0 or 1.
        smooth: added above and below, so that an empty map is no division by zero.
    """
    both = 2 * (probabilities * wanted).sum() + smooth
    return 1 - both / (probabilities.square().sum() + wanted.square().sum() + smooth)


def lane_class_loss(logits: Tensor, classes: Tensor, background_weight: float) -> Tensor:
    """Cross-entropy of every cell, the background's weighted; zero, with a graph, where there is no cell.

    Args:
        logits: (B, lanes + 1, H, W), the background last.
        classes: (B, H, W) int64 in 0..lanes.
    """
    weights = torch.ones(logits.shape[1], device=logits.device)
    weights[-1] = background_weight
    total = F.cross_entropy(logits.float(), classes, weights, reduction="sum")
    return total / weights[classes].sum().clamp(min=1e-6)
