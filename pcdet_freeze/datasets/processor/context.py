"""What every processor is told besides its own config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_freeze.datasets.registry import Config, require
from pcdet_freeze.errors import ConfigError


@dataclass(frozen=True)
class ProcessorContext:
    """Range (6,) in metres, train or test, and the number of point columns."""

    point_cloud_range: np.ndarray
    training: bool
    num_point_features: int

    def of_mode(self, where: str, cfg: Config, key: str) -> Any:
        """``cfg[key]['train']`` or ``cfg[key]['test']``; ConfigError where it is not given per mode."""
        values = require(where, cfg, key)
        mode = "train" if self.training else "test"
        if not hasattr(values, "keys") or mode not in values:
            raise ConfigError(f"{where}.{key} must be a mapping with the keys train and test; got {values!r}")
        return values[mode]
