"""Divide the loss of a head by the counts of all ranks, so that several ranks give the gradient of one.

DistributedDataParallel averages gradients over ranks. Where each rank divides by a count of its own, a label
on a rank with few labels weighs more than one on a rank with many, and a rank without labels halves the
gradient of two. With ``MODEL.LOSS_NORMALIZATION: global`` a head divides by the sum of the counts of all
ranks, and of all micro-batches of an optimizer step (OPTIMIZATION.ACCUMULATE).

A head takes part if it has a method ``normalizers``, and if its ``get_loss`` uses what
:func:`normalizers_of` returns. ``local`` is OpenPCDet's behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pcdet_freeze.utils import distributed

Kind = Literal["global", "local"]
KEY = "normalizers"
"""key in the ``forward_ret_dict`` of a head"""


class CountsLabels(Protocol):
    """A head that can divide its loss by the counts of all ranks."""

    forward_ret_dict: dict[str, Any]

    def normalizers(self) -> Tensor:
        """(K,) sums of the last training forward by which its loss is divided; the first: labelled frames."""


@dataclass(frozen=True)
class Normalizers:
    """Sums over all forwards whose gradients are averaged."""

    values: Tensor
    """(K,) float32, as :meth:`CountsLabels.normalizers` orders them"""
    forwards: int
    """number of ranks times number of micro-batches"""

    def mean(self, total: Tensor, index: int, least: float = 1.0) -> Tensor:
        """``total``, a sum of this forward, divided by sum ``index``, at least ``least``, of all forwards.

        The average over all forwards is the mean over all labels.
        """
        return total / self.values[index].clamp(min=least) * self.forwards

    def summed(self, own: Tensor, index: int) -> Tensor:
        """Sum ``index`` of all forwards, with the gradient of ``own``, this forward's part of it.

        The gradient is multiplied by the number of forwards, since their average is taken.
        """
        return self.values[index] + (own - own.detach()) * self.forwards

    def share(self, loss: Tensor, frames: Tensor | int) -> Tensor:
        """``loss`` of all forwards, with the value that is due to ``frames`` labelled frames of this one.

        The gradient is unchanged. The average of the values over all forwards is ``loss``.
        """
        part = self.mean(loss.detach() * frames, 0)
        return part + (loss - loss.detach())


def normalizers_of(head: nn.Module) -> Normalizers | None:
    """The sums by which ``head`` divides its loss; None: those of its own forward."""
    state: Mapping[str, Any] = getattr(head, "forward_ret_dict", {})
    return state.get(KEY) if isinstance(state, Mapping) else None


class LossNormalization:
    """Sums the normalizers of all heads with ``global`` in one all-reduce between forward and loss.

    In a single process without accumulation nothing is computed. A deep copy of a model does not take part
    in collectives: copies are made for checks, which may run on one rank only.

    Args:
        kinds: head -> kind; other heads are local.

    Attributes:
        across_ranks: whether all ranks run this model at the same time.
        micro_batches: number of forwards of an optimizer step on each rank.
        known: sums of all forwards, where they were computed before (:meth:`count`).
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds = dict(kinds)
        self.across_ranks = True
        self.micro_batches = 1
        self.known: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> LossNormalization:
        copied = LossNormalization(self.kinds)
        copied.across_ranks = False
        return copied

    def chosen(self, heads: Mapping[str, nn.Module]) -> list[CountsLabels]:
        """The heads that divide by the counts of all forwards, in order."""
        found: Iterable[Any] = (head for name, head in heads.items() if self.kinds.get(name) == "global")
        return [head for head in found if hasattr(head, "normalizers")]

    def share(self, heads: Mapping[str, nn.Module]) -> None:
        """Give each head its :class:`Normalizers`. Collective where there are several ranks."""
        chosen, forwards = self.chosen(heads), self._ranks * self.micro_batches
        if forwards == 1 or not chosen:
            return
        own = [head.normalizers() for head in chosen]
        values = self.known if self.known is not None else self.sum_over_ranks(torch.cat(own).double())
        parts = values.float().split([len(part) for part in own])
        for head, part in zip(chosen, parts, strict=True):
            head.forward_ret_dict[KEY] = Normalizers(part, forwards)

    def count(self, heads: Mapping[str, nn.Module]) -> Tensor | None:
        """(K,) float64 sums of the last forward of this rank; None where no head needs them."""
        chosen = self.chosen(heads)
        return torch.cat([head.normalizers() for head in chosen]).double() if chosen else None

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self._ranks > 1:
            dist.all_reduce(values)
        return values

    @property
    def _ranks(self) -> int:
        return distributed.world_size() if self.across_ranks else 1


def for_log(values: Tensor) -> list[Any]:
    """The entries of ``values``: numbers on a CPU; elsewhere tensors, so that the host does not wait."""
    values = values.detach()
    return values.tolist() if values.device.type == "cpu" else list(values.unbind())
