"""What every processor is built with besides its own settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ProcessorContext:
    """Range (6,) in metres, train or test, and the number of point columns."""

    point_cloud_range: np.ndarray
    training: bool
    num_point_features: int
