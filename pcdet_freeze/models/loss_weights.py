"""Fixed and learned weights of the losses of several tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

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


def read_loss_weights(
    model_cfg: Mapping[str, Any], heads: Sequence[str], faults: list[str]
) -> dict[str, float]:
    """``MODEL.LOSS_WEIGHTS``: head -> weight; errors are appended to ``faults``."""
    values = model_cfg.get("LOSS_WEIGHTS")
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        faults.append(f"MODEL.LOSS_WEIGHTS must map names of heads to weights; got {values!r}")
        return {}
    for name, value in values.items():
        if name not in heads:
            faults.append(
                f"MODEL.LOSS_WEIGHTS.{name} is not a head of the model; heads: {', '.join(heads) or '(none)'}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            faults.append(f"MODEL.LOSS_WEIGHTS.{name} must be a finite number of at least 0; got {value!r}")
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def read_learned(model_cfg: Mapping[str, Any], faults: list[str]) -> bool:
    """``MODEL.LEARN_LOSS_WEIGHTS``, default False; errors are appended to ``faults``."""
    value = model_cfg.get("LEARN_LOSS_WEIGHTS", False)
    if not isinstance(value, bool):
        faults.append(f"MODEL.LEARN_LOSS_WEIGHTS must be true or false; got {value!r}")
    return value is True
