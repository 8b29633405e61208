"""Frames whose boxes are labelled for some classes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.datasets.frames import keep_boxes
from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.settings.names import did_you_mean

LABELLED_CLASSES = "labelled_classes"
"""key of a sample or a batch: the classes that gt_boxes is labelled for; without it: all"""


def labelled_classes(
    settings: DataSettings, class_names: Sequence[str], training: bool
) -> tuple[str, ...] | None:
    """LABELLED_CLASSES of a split; None: all classes.

    Raises ConfigError for a class that ``class_names`` does not list.
    """
    found = settings.labelled_classes
    names = found.of(training) if isinstance(found, Modes) else found
    for name in names or ():
        if name not in class_names:
            raise ConfigError(
                f"DATA_CONFIG.LABELLED_CLASSES must be among CLASS_NAMES ({', '.join(class_names)}); got "
                f"{name!r}{did_you_mean(name, class_names)}"
            )
    return names


def mark_labelled(sample: Sample, names: Sequence[str] | None) -> None:
    """Note the classes that a frame is labelled for, and remove boxes of other classes.

    Args:
        names: those of the data set; the frame's own take precedence. None: all classes.
    """
    if sample.get("gt_boxes") is None:
        return
    own = sample.get(LABELLED_CLASSES, names)
    if own is not None:
        sample[LABELLED_CLASSES] = tuple(own)
        keep_boxes(sample, np.isin(np.asarray(sample["gt_names"], str), list(own)))


def fill_labelled(values: Sequence[Any]) -> list[np.ndarray]:
    """``labelled_classes`` (C,) bool of each sample of a batch, for those without (None) all True."""
    like = np.asarray(next(value for value in values if value is not None))
    return [np.ones_like(like) if value is None else np.asarray(value) for value in values]
