"""What every augmentor is built with besides its own settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.reading.bad_data import BadFramePolicy


@dataclass(frozen=True)
class AugmentorContext:
    """Trained classes, range (6,) in metres, folder of the ground-truth database, log, semantic classes."""

    class_names: list[str]
    point_cloud_range: np.ndarray
    root_path: Path
    logger: logging.Logger
    semantic_class_names: tuple[str, ...] = ()
    policy: BadFramePolicy = field(default_factory=BadFramePolicy)
    """what becomes of database objects that cannot be used"""
