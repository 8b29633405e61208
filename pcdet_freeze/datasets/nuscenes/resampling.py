"""Class-balanced resampling of frames (CBGS, Zhu et al., arXiv:1908.09492)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np

SEED = 0
"""of the draw: it is the same on every rank, and in a run that is resumed"""


def balanced_frames(
    names: Sequence[Collection[str]], classes: Sequence[str], logger: logging.Logger
) -> np.ndarray:
    """Indices of the frames of an epoch, in which each class occurs in as many draws.

    Each class gets the same number of draws, with replacement, from the frames that it occurs in: the number
    of all (frame, class) pairs divided by the number of classes, at least one. A class that no frame has gets
    none.

    Args:
        names: names of the boxes of each frame.
        classes: the classes that are balanced.
    """
    frames = {name: [k for k, found in enumerate(names) if name in found] for name in classes}
    if missing := [name for name, found in frames.items() if not found]:
        logger.warning("BALANCED_RESAMPLING: no frame has a box of %s", ", ".join(missing))
    draws = max(1, sum(map(len, frames.values())) // max(len(classes), 1))
    rng = np.random.RandomState(SEED)
    chosen = [rng.choice(found, draws) for found in frames.values() if found]
    return np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64)
