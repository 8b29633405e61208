"""What every augmentor is built with besides its own settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class AugmentorContext:
    """Trained classes, range (6,) in metres, folder of the ground-truth database, log, semantic classes."""

    class_names: list[str]
    point_cloud_range: np.ndarray
    root_path: Path
    logger: logging.Logger
    semantic_class_names: tuple[str, ...] = ()
