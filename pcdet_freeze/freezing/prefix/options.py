"""How the frozen prefix runs (MODEL.FREEZE)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pcdet_freeze.freezing.plan import FreezePlan

QUICK_FORM = "forward_frozen"
"""name of a module's faster forward for the prefix, whose outputs differ by rounding alone"""


def own_quick_form(module: nn.Module) -> Callable[..., Any] | None:
    """The method :data:`QUICK_FORM` of ``module``; None if it has none."""
    form: Callable[..., Any] | None = getattr(module, QUICK_FORM, None)
    return form


@dataclass(frozen=True)
class Options:
    """Options of the frozen prefix. ``fuse`` changes results by rounding alone; the others are opt-in."""

    fuse: bool | str = True
    """FREEZE.FUSE: fold BatchNorms and fuse convolutions that read one map, which changes results by rounding
    alone; under autocast only with "force". False: no_grad alone, which changes no bit"""
    dtype: torch.dtype = torch.float32
    """dtype of the prefix's arithmetic; its outputs are float32"""
    channels_last: bool = False
    """whether maps are in the channels_last memory format inside the prefix"""
    compile: bool | str = False
    """whether modules of the prefix that map one tensor to one tensor are compiled (torch.compile); "graphs":
    as CUDA graphs, which the host launches at once"""
    skip_empty: bool = True
    """FREEZE.SKIP_EMPTY: whether blocks of folded convolutions run on reached cells only, where it pays"""
    few_products: bool = False
    """whether folded 3x3 convolutions of channels-last maps run by fewer products, on a CPU in float32"""
    quick_form: Callable[[nn.Module], Callable[..., Any] | None] = own_quick_form
    """module -> a faster forward whose outputs differ by rounding alone, or None. It is compared with the
    module's own forward before it is used"""

    @classmethod
    def of(cls, plan: FreezePlan) -> Options:
        """Options of a plan's FREEZE section."""
        return cls(
            plan.fuse,
            getattr(torch, plan.prefix_dtype),
            plan.channels_last,
            plan.compile,
            plan.skip_empty,
        )

    @property
    def only_fuses(self) -> bool:
        """Whether nothing but FREEZE.FUSE changes how the prefix runs."""
        return self.is_exact and not self.channels_last and not self.compile

    @property
    def may_skip(self) -> bool:
        """Whether blocks may run on reached cells only."""
        return self.skip_empty and self.only_fuses and bool(self.fuse)

    @property
    def is_exact(self) -> bool:
        """Whether the prefix computes in float32."""
        return self.dtype == torch.float32
