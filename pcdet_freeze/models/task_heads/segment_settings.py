"""Settings of the segmentation head: ``MODEL.SEGMENT_HEAD``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.utils.settings.rules import Count, Rule, at_least, whole
from pcdet_freeze.utils.settings.sections import Section

WHERE = "MODEL.SEGMENT_HEAD (SegmentHead)"
Weight = Annotated[float, at_least(0)]


@dataclass(frozen=True)
class SegmentLossSettings(Section):
    """``LOSS_CONFIG``."""

    ce_weight: Weight = 1.0
    lovasz_weight: Weight = 1.0
    cell_weight: Weight = 1.0
    """of the loss of the cells, where there is one"""
    class_weights: tuple[Weight, ...] = ()
    """of the cross-entropy, one per class; empty: all 1"""


@dataclass(frozen=True)
class SegmentHeadSettings(Section):
    """``MODEL.SEGMENT_HEAD`` of SegmentHead."""

    num_class: Annotated[int, whole(2)] | None = None
    """null: as many as the data set names"""
    point_filters: Annotated[tuple[Count, ...], Rule("a list of one width or more", bool)] = (64, 64)
    """widths of the hidden layers on each point"""
    max_points: Annotated[int, whole(2)] | None = None
    """in training, at most so many points of each frame, evenly spread over it, are used; null: all"""
    cell_labels: bool = False
    """predict the class of each cell of the map, too: that of most of its points"""
    loss_config: SegmentLossSettings = field(default_factory=SegmentLossSettings)


def number_of_classes(settings: SegmentHeadSettings, context: BuildContext) -> int:
    """NUM_CLASS, or the number of classes that the data set names; ConfigError where they differ."""
    names = context.semantic_class_names
    if settings.num_class is None and not names:
        raise ConfigError(
            f"{WHERE}: the data set has no semantic classes. Add point_labels (docs/labels.md: "
            "GET_ITEM_LIST, SEMANTIC.CLASSES), or set NUM_CLASS if the head is not trained."
        )
    number = settings.num_class or len(names)
    if names and number != len(names):
        raise ConfigError(
            f"{WHERE}: NUM_CLASS must be the number of semantic classes of the data set, {len(names)} "
            f"({', '.join(names)}); got {number}"
        )
    if len(settings.loss_config.class_weights) not in (0, number):
        raise ConfigError(
            f"{WHERE}: LOSS_CONFIG.CLASS_WEIGHTS must have {number} entries, one per class, or none; got "
            f"{len(settings.loss_config.class_weights)}"
        )
    return number
