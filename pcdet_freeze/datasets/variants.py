"""Draw a fixed number of augmented variants of each sample, so that features of them can be cached."""

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
    """The part of :class:`DatasetTemplate` that FREEZE.CACHE uses."""

    dataset_cfg: Config
    class_names: list[str]
    training: bool
    seed: int
    epoch: int
    data_augmentor: DataAugmentor | None
    data_processor: DataProcessor
    variants: int | None = None
    """number of variants of each sample; None: another one in each epoch"""

    @property
    def draw(self) -> int:
        """Number of the current draw: the epoch, or the variant of this epoch."""
        return self.epoch if self.variants is None else self.epoch % self.variants

    def random_state(self, index: int) -> np.random.RandomState:
        """Return the only random generator of sample ``index``: a function of (seed, epoch, index)."""
        return np.random.RandomState([part & 0xFFFFFFFF for part in (self.seed, self.draw, index)])

    @property
    def random_steps(self) -> list[str]:
        """Names of the augmentors and processors that use random numbers."""
        names = self.data_augmentor.names if self.data_augmentor is not None else []
        return [*names, *self.data_processor.random_steps]

    def keep_variants(self, variants: int | None) -> None:
        """Draw ``variants`` variants of each sample in turn from now on; samples get ``cache_entry``.

        None: one, if no step is random. Raises ConfigError if one is.
        """
        if variants is None and self.random_steps:
            raise ConfigError(
                f"FREEZE.CACHE needs samples that repeat, but {', '.join(self.random_steps)} are random in "
                "every epoch. Set the number of variants of each sample to keep, such as CACHE: "
                "{FOLDER: folder, VARIANTS: 4}; with 1 each sample is augmented once."
            )
        self.variants = variants or 1

    def cache_row(self, index: int) -> int:
        """Return the row of sample ``index`` in a cache, for its variant of this epoch."""
        return index * (self.variants or 1) + (self.draw if self.variants else 0)

    def cache_entry(self, index: int, sample: Sample) -> np.ndarray:
        """Return (2,) int64: the row, and a checksum of the augmented points."""
        points = np.ascontiguousarray(sample["points"])
        return np.array([self.cache_row(index), zlib.crc32(points.data)], np.int64)

    def cache_key(self) -> dict[str, Any]:
        """Return all that samples depend on except the files, as plain data, with the number of ``rows``."""
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
