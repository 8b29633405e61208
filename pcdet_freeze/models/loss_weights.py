"""How the losses of several tasks become one: fixed weights, and weights that are learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

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


def read_loss_weights(
    model_cfg: Mapping[str, Any], heads: Sequence[str], faults: list[str]
) -> dict[str, float]:
    """``MODEL.LOSS_WEIGHTS``: head -> weight; what is wrong with it is appended to ``faults``."""
    values = model_cfg.get("LOSS_WEIGHTS")
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        faults.append(f"MODEL.LOSS_WEIGHTS must be a section, a head's name to its weight; got {values!r}")
        return {}
    for name, value in values.items():
        if name not in heads:
            faults.append(
                f"MODEL.LOSS_WEIGHTS.{name} is no head of this model; heads: {', '.join(heads) or '(none)'}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            faults.append(f"MODEL.LOSS_WEIGHTS.{name} must be a number, 0 or above; got {value!r}")
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def read_learned(model_cfg: Mapping[str, Any], faults: list[str]) -> bool:
    """``MODEL.LEARN_LOSS_WEIGHTS``, False where it is missing; a fault is appended to ``faults``."""
    value = model_cfg.get("LEARN_LOSS_WEIGHTS", False)
    if not isinstance(value, bool):
        faults.append(f"MODEL.LEARN_LOSS_WEIGHTS must be true or false; got {value!r}")
    return value is True
