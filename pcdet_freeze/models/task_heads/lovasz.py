"""The Lovász-softmax loss: a surrogate of the mean intersection over union (arXiv:1705.08790)."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_softmax(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes that occur in ``targets`` of the Lovász extension of the Jaccard loss.

    Of each class, errors are sorted from the largest; the n-th weighs what the Jaccard index loses when it is
    added to the n - 1 before it (section 2.2 and algorithm 1 of the paper).

    Args:
        probabilities: (N, C), rows that sum to 1.
        targets: (N,) int64 in 0..C - 1.

    Returns:
        A scalar; zero, with a graph, where N is 0.
    """
    if len(targets) == 0:
        return probabilities.sum()
    present = torch.unique(targets)
    is_class = (targets.unsqueeze(1) == present).to(probabilities.dtype)
    errors = (is_class - probabilities[:, present]).abs()
    ordered, order = errors.sort(dim=0, descending=True)
    return (ordered * _jaccard_steps(is_class.gather(0, order))).sum(dim=0).mean()


def _jaccard_steps(is_class: Tensor) -> Tensor:
    """What the Jaccard loss grows by at each row of (N, classes) ground truth, taken from the top."""
    total = is_class.sum(dim=0)
    left = total - is_class.cumsum(dim=0)
    union = total + (1 - is_class).cumsum(dim=0)
    loss = 1 - left / union
    return torch.diff(loss, dim=0, prepend=torch.zeros_like(loss[:1]))
