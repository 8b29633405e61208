"""Fixed and learned weights of the losses of several tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NAME = "loss_scale"
"""name of the learned weight in its head; as a submodule it is frozen, saved and skipped with the head"""


class LossScale(nn.Module):
    """The learned weight of one task: s, the log of its homoscedastic variance.

    ``loss * exp(-s) + s / 2`` (Kendall, Gal and Cipolla, arXiv:1705.07115, equation 10; as there, s is
    learned instead of the variance, for numerical stability). A batch without labels of the task has a loss
    of exactly zero and gives no gradient for s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, loss: Tensor) -> Tensor:
        """Apply the weight to a scalar loss."""
        return loss * torch.exp(-self.log_variance) + self.log_variance / 2 * (loss.detach() != 0)

    def weight(self) -> float:
        """The current factor of the loss."""
        return float(torch.exp(-self.log_variance.detach()))


def apply_loss_weights(name: str, head: nn.Module, loss: Tensor, weights: Mapping[str, float]) -> Tensor:
    """Apply the fixed weight of ``head`` (default 1) and its learned weight, if any, to its loss."""
    if name in weights:
        loss = loss * weights[name]
    scale = getattr(head, NAME, None)
    return scale(loss) if isinstance(scale, LossScale) else loss
