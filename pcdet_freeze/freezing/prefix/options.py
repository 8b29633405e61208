"""How the frozen prefix runs (MODEL.FREEZE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pcdet_freeze.freezing.plan import FreezePlan


@dataclass(frozen=True)
class Options:
    """Options of the frozen prefix. ``fuse`` changes results by rounding alone; the others are opt-in."""

    fuse: bool | str = True
    """FREEZE.FUSE: fold BatchNorms and fuse convolutions that read one map, which changes results by rounding
    alone; under autocast or TF32 only with "force". False: no_grad alone, which changes no bit"""
    dtype: torch.dtype = torch.float32
    """dtype of the prefix's arithmetic; its outputs are float32"""
    channels_last: bool = False
    """whether maps are in the channels_last memory format inside the prefix"""
    compile: bool = False
    """whether modules of the prefix that map one tensor to one tensor are compiled (torch.compile)"""

    @classmethod
    def of(cls, plan: FreezePlan) -> Options:
        """Options of a plan's FREEZE section."""
        return cls(plan.fuse, getattr(torch, plan.prefix_dtype), plan.channels_last, plan.compile)

    @property
    def is_exact(self) -> bool:
        """Whether the prefix computes in float32."""
        return self.dtype == torch.float32
