"""Loss terms of the task heads. All of them are computed in float32, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pcdet_freeze.utils.devices import is_accelerator


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
    return lovasz_softmax_sum(probabilities, targets, torch.zeros_like(targets), 1)


def lovasz_softmax_sum(probabilities: Tensor, targets: Tensor, frames: Tensor, count: int) -> Tensor:
    """Sum over frames of :func:`lovasz_softmax` of the rows of each; a frame without rows adds zero.

    All frames are computed at once, so that the host need not know how many rows a frame has.

    Args:
        frames: (N,) int64, frame of each row; rows of frame ``count`` are left out.
        count: number of frames.
    """
    if len(targets) == 0:
        return probabilities.sum()
    is_class = (targets.unsqueeze(1) == torch.arange(probabilities.shape[1], device=targets.device)).to(
        probabilities.dtype
    )
    errors = (is_class - probabilities).abs()
    # errors are at most 1: rows are sorted by frame, and by descending error within a frame
    left_out = int(is_accelerator(frames))  # elsewhere there is no such row
    is_one = count + left_out == 1
    key = errors.detach() if is_one else errors.detach().double() - 2 * frames.unsqueeze(1)
    order, place = key.argsort(dim=0, descending=True), frames.sort().values
    rows = is_class.new_zeros(count + left_out, is_class.shape[1]).index_add_(0, frames, is_class)
    present = (rows > 0).to(rows.dtype)
    present[count:] = 0
    weights = present / present.sum(dim=1, keepdim=True).clamp(min=1)
    steps = _jaccard_steps(is_class.gather(0, order), place, rows)
    return (errors.gather(0, order) * steps * weights[place]).sum()


def _jaccard_steps(is_class: Tensor, frames: Tensor, rows: Tensor) -> Tensor:
    """Increase of the Jaccard loss with each row of the sorted ground truth (N, C).

    Args:
        frames: (N,) int64, frame of each row, ascending.
        rows: (frames, C), number of rows of each class in each frame.
    """
    total, size = rows[frames], rows.sum(dim=1)
    seen = is_class.cumsum(dim=0) - (rows.cumsum(dim=0) - rows)[frames]
    number = torch.arange(1, len(frames) + 1, device=frames.device) - (size.cumsum(dim=0) - size)[frames]
    loss = 1 - (total - seen) / (total + number.unsqueeze(1) - seen)
    before = torch.cat([torch.zeros_like(loss[:1]), loss[:-1]])
    return loss - before.masked_fill((number == 1).unsqueeze(1), 0)


def soft_dice_loss(probabilities: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice coefficient of all cells, in V-Net's form with squares (arXiv:1606.04797, section 3).

    Args:
        probabilities: any shape, in [0, 1].
        targets: the same shape, 0 or 1.
        smooth: added to numerator and denominator, so that an empty map does not divide by zero.
    """
    return dice_of_sums(*dice_sums(probabilities, targets), smooth)


def dice_sums(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all cells: of the product, of the squared probabilities, of the squared targets."""
    return (probabilities * targets).sum(), probabilities.square().sum(), targets.square().sum()


def dice_of_sums(overlap: Tensor, found: Tensor, true: Tensor, smooth: float = 1.0) -> Tensor:
    """:func:`soft_dice_loss` from :func:`dice_sums`."""
    return 1 - (2 * overlap + smooth) / (found + true + smooth)


def lane_class_loss(logits: Tensor, classes: Tensor, background_weight: float) -> Tensor:
    """Cross-entropy of all cells with a weight for the background; zero, attached to the graph, without
    cells.

    Args:
        logits: (B, lanes + 1, H, W), the background last.
        classes: (B, H, W) int64 in 0..lanes.
    """
    total, weight = lane_class_sums(logits, classes, background_weight)
    return total / weight.clamp(min=1e-6)


def lane_class_sums(logits: Tensor, classes: Tensor, background_weight: float) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of all cells, and the sum of their weights; see :func:`lane_class_loss`."""
    weights = torch.ones(logits.shape[1], device=logits.device)
    weights[-1] = background_weight
    total = F.cross_entropy(logits.float(), classes, weights, reduction="sum")
    return total, weights[classes].sum()
