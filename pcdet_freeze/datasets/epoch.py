"""Which frames an epoch of training has: each once, unless a data set balances its frames."""

from __future__ import annotations

from typing import Any

import numpy as np


class EpochMixin:
    """The part of :class:`DatasetTemplate` that a sampler uses."""

    labels: tuple[str, ...]
    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next samples; their augmentation depends on it."""
        self.epoch = epoch

    @property
    def epoch_length(self) -> int:
        """Number of samples in an epoch of training."""
        dataset: Any = self
        return len(dataset)

    def epoch_frames(self, seed: int, epoch: int) -> np.ndarray:
        """(epoch_length,) int64: indices of an epoch of training, before they are shuffled.

        ``index + n * len(self)`` is repetition n of a frame: the same frame with other random numbers.
        """
        return np.arange(self.epoch_length)

    def labelled(self, key: str) -> np.ndarray:
        """(len,) bool: the frames that have the label ``key``, as far as is known before they are read."""
        dataset: Any = self
        return np.full(len(dataset), key in self.labels)
