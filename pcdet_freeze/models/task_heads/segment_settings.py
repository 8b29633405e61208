"""Settings of the segmentation head: ``MODEL.SEGMENT_HEAD``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pcdet_freeze.errors import ConfigError


@dataclass(frozen=True)
class SegmentLossSettings:
    """``LOSS_CONFIG``."""

    ce_weight: float = 1.0
    lovasz_weight: float = 1.0
    cell_weight: float = 1.0
    """of the loss of the cells, where there is one"""
    class_weights: tuple[float, ...] = ()
    """of the cross-entropy, one a class; empty: all 1"""

    def __post_init__(self) -> None:
        weights = (self.ce_weight, self.lovasz_weight, self.cell_weight, *self.class_weights)
        if min(weights) < 0:
            raise ConfigError(f"weights must not be negative; got {weights}")


@dataclass(frozen=True)
class SegmentHeadSettings:
    """``MODEL.SEGMENT_HEAD`` of SegmentHead."""

    num_class: int | None = None
    """null: as many as the data set names"""
    point_filters: tuple[int, ...] = (64, 64)
    """widths of the hidden layers on each point"""
    max_points: int | None = None
    """in training, at most so many points of a batch, evenly spread over it, are looked at; null: all"""
    cell_labels: bool = False
    """predict the class of each cell of the map, too: that of most of its points"""
    loss_config: SegmentLossSettings = field(default_factory=SegmentLossSettings)

    def __post_init__(self) -> None:
        for name in ("num_class", "max_points"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ConfigError(f"{name.upper()} must be at least 2, or null; got {value}")
        if not self.point_filters or min(self.point_filters) < 1:
            raise ConfigError(
                f"POINT_FILTERS needs one positive width or more; got {list(self.point_filters)}"
            )
