"""Precision and recall of a class at the score thresholds at which a benchmark samples its curve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PrecisionRecall:
    """Counts at T score thresholds, by falling threshold: by rising recall."""

    name: str
    """``Car_3d/moderate``"""
    labels: int
    """that count"""
    thresholds: Floats
    """(T,) detections with a lower score are discarded"""
    true: Floats
    """(T,) labels that are found"""
    false: Floats
    """(T,) detections that are none"""

    @property
    def precision(self) -> Floats:
        """(T,) share of the detections that are right, from 0 to 1."""
        return self.true / np.maximum(self.true + self.false, 1)

    @property
    def recall(self) -> Floats:
        """(T,) share of the labels that are found, from 0 to 1."""
        return self.true / max(self.labels, 1)

    def named(self, name: str) -> PrecisionRecall:
        """The same counts under another name."""
        return replace(self, name=name)
