"""How the losses of several tasks become one: fixed weights, and weights that are learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NAME = "loss_scale"
"""what the learned weight of a head is called inside it, so that it is frozen, saved and skipped with it"""


class LossScale(nn.Module):
    """The learned weight of one task: the log of its homoscedastic variance, s.

    ``loss * exp(-s) + s / 2`` (Kendall, Gal and Cipolla, arXiv:1705.07115, equation 10; as there, s is
    learned instead of the variance, to be stable). A batch without any label of the task gives a loss of
    exactly zero; it says nothing of the variance, and leaves s alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, loss: Tensor) -> Tensor:
        """A scalar loss, weighed."""
        return loss * torch.exp(-self.log_variance) + self.log_variance / 2 * (loss.detach() != 0)

    def weight(self) -> float:
        """What the loss is multiplied by now."""
        return float(torch.exp(-self.log_variance.detach()))


def weigh(name: str, head: nn.Module, loss: Tensor, weights: Mapping[str, float]) -> Tensor:
    """The loss of ``head`` by its fixed weight (1 where there is none), then by its learned one, if any."""
    if name in weights:
        loss = loss * weights[name]
    scale = getattr(head, NAME, None)
    return scale(loss) if isinstance(scale, LossScale) else loss
