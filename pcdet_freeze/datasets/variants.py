"""A data set that draws so many variants of each sample and no more: what is made of them can be kept."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.config import plain
from pcdet_freeze.datasets.augmentor import DataAugmentor
from pcdet_freeze.datasets.processor import DataProcessor
from pcdet_freeze.datasets.registry import Config, Sample
from pcdet_freeze.errors import ConfigError


class VariantsMixin:
    """The part of :class:`DatasetTemplate` that a cache talks to."""

    dataset_cfg: Config
    class_names: list[str]
    training: bool
    seed: int
    epoch: int
    data_augmentor: DataAugmentor | None
    data_processor: DataProcessor
    variants: int | None = None
    """how many draws of each sample there are; None: another one in each epoch"""

    @property
    def draw(self) -> int:
        """Number of the present draw: the epoch, or the variant whose turn it is."""
        return self.epoch if self.variants is None else self.epoch % self.variants

    @property
    def random_steps(self) -> list[str]:
        """Names of the augmentors and processors that draw random numbers."""
        names = self.data_augmentor.names if self.data_augmentor is not None else []
        return [*names, *self.data_processor.random_steps]

    def keep_variants(self, variants: int | None) -> None:
        """From now on draw only so many variants of each sample, in turns; samples carry ``cache_entry``.

        None: one, if nothing is drawn. Raises ConfigError where something is.
        """
        if variants is None and self.random_steps:
            raise ConfigError(
                f"FREEZE.CACHE keeps outputs of samples that come again, but {', '.join(self.random_steps)} "
                "draw anew in every epoch. Say how many variants of each sample to keep, such as CACHE: "
                "{FOLDER: folder, VARIANTS: 4}; with 1 each is drawn once and for all."
            )
        self.variants = variants or 1

    def cache_row(self, index: int) -> int:
        """Row of sample ``index`` in a cache, as it is drawn in this epoch."""
        return index * (self.variants or 1) + (self.draw if self.variants else 0)

    def cache_entry(self, index: int, sample: Sample) -> np.ndarray:
        """(2,) int64: the row, and a checksum of the points as they were drawn."""
        points = np.ascontiguousarray(sample["points"])
        return np.array([self.cache_row(index), zlib.crc32(points.data)], np.int64)

    def cache_key(self) -> dict[str, Any]:
        """All that samples depend on besides the files, as plain data, with the number of ``rows``."""
        variants, frames = self.variants or 1, self._frame_names()
        return {
            "config": plain(self.dataset_cfg),
            "class_names": self.class_names,
            "training": self.training,
            "frames": hashlib.sha256("\n".join(frames).encode()).hexdigest(),
            "seed": self.seed if self.random_steps else None,
            "variants": variants,
            "rows": len(frames) * variants,
        }

    def _frame_names(self) -> Sequence[str]:
        dataset: Any = self
        return [dataset.frame_name(index) for index in range(len(dataset))]
