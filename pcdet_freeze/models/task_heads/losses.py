"""Loss terms of the task heads. All of them are computed in float32, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lovasz_softmax(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Lovász-softmax loss, a surrogate of the mean intersection over union (arXiv:1705.08790).

    The mean over the classes in ``targets`` of the Lovász extension of the Jaccard loss. For each class,
    errors are sorted in descending order, and the n-th error is weighted by the decrease of the Jaccard index
    when it is added to the first n - 1 (section 2.2 and algorithm 1).

    Args:
        probabilities: (N, C), rows sum to 1.
        targets: (N,) int64 in 0..C - 1.

    Returns:
        A scalar; zero, attached to the graph, if N is 0.
    """
    if len(targets) == 0:
        return probabilities.sum()
    present = torch.unique(targets)
    is_class = (targets.unsqueeze(1) == present).to(probabilities.dtype)
    errors = (is_class - probabilities[:, present]).abs()
    ordered, order = errors.sort(dim=0, descending=True)
    return (ordered * _jaccard_steps(is_class.gather(0, order))).sum(dim=0).mean()


def _jaccard_steps(is_class: Tensor) -> Tensor:
    """Increase of the Jaccard loss with each row of the sorted ground truth (N, classes)."""
    total = is_class.sum(dim=0)
    left = total - is_class.cumsum(dim=0)
    union = total + (1 - is_class).cumsum(dim=0)
    loss = 1 - left / union
    return torch.diff(loss, dim=0, prepend=torch.zeros_like(loss[:1]))


def soft_dice_loss(probabilities: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice coefficient of all cells, in V-Net's form with squares (arXiv:1606.04797, section 3).

    Args:
        probabilities: any shape, in [0, 1].
        targets: the same shape, 0 or 1.
        smooth: added to numerator and denominator, so that an empty map does not divide by zero.
    """
    intersection = 2 * (probabilities * targets).sum() + smooth
    return 1 - intersection / (probabilities.square().sum() + targets.square().sum() + smooth)


def lane_class_loss(logits: Tensor, classes: Tensor, background_weight: float) -> Tensor:
    """Cross-entropy of all cells with a weight for the background; zero, attached to the graph, without
    cells.

    Args:
        logits: (B, lanes + 1, H, W), the background last.
        classes: (B, H, W) int64 in 0..lanes.
    """
    weights = torch.ones(logits.shape[1], device=logits.device)
    weights[-1] = background_weight
    total = F.cross_entropy(logits.float(), classes, weights, reduction="sum")
    return total / weights[classes].sum().clamp(min=1e-6)
