"""Fixed and learned weights of the losses of several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.models.loss_normalization import for_log, normalizers_of

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

    def forward(self, loss: Tensor, labelled: Tensor | None = None) -> Tensor:
        """Apply the weight to a scalar loss.

        Args:
            labelled: () bool, whether a frame of any rank has labels; default: whether the loss is not zero.
        """
        labelled = loss.detach() != 0 if labelled is None else labelled
        return loss * torch.exp(-self.log_variance) + self.log_variance / 2 * labelled

    def weight(self) -> Any:
        """The current factor of the loss: a number on a CPU, elsewhere a tensor."""
        return for_log(torch.exp(-self.log_variance.detach()).reshape(1))[0]


def apply_loss_weights(name: str, head: nn.Module, loss: Tensor, weights: Mapping[str, float]) -> Tensor:
    """Apply the fixed weight of ``head`` (default 1) and its learned weight, if any, to its loss."""
    if name in weights:
        loss = loss * weights[name]
    scale = getattr(head, NAME, None)
    if not isinstance(scale, LossScale):
        return loss
    counts = normalizers_of(head)
    weighted: Tensor = scale(loss, None if counts is None else counts.values[0] > 0)
    return weighted
