"""What a training may do to its frozen prefix (MODEL.FREEZE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pcdet_freeze.freezing.plan import FreezePlan


@dataclass(frozen=True)
class Options:
    """The first two keys are exact but for rounding; the others are asked for."""

    fuse: bool | str = True
    """compute layers as one where that is exact but for rounding; not under autocast or TF32, unless "force".
    False: only leave the prefix's graph away, which changes no bit"""
    dtype: torch.dtype = torch.float32
    """what the prefix computes in; what it puts out is float32 again"""
    channels_last: bool = False
    """maps in the order (sample, row, column, channel) inside the prefix"""
    compile: bool = False
    """torch.compile the parts of the prefix that take one tensor and give one"""

    @classmethod
    def of(cls, plan: FreezePlan) -> Options:
        """Those of a freeze list's FREEZE block."""
        return cls(plan.fuse, getattr(torch, plan.prefix_dtype), plan.channels_last, plan.compile)

    @property
    def is_exact(self) -> bool:
        """Whether nothing but rounding in float32 may change."""
        return self.dtype == torch.float32
