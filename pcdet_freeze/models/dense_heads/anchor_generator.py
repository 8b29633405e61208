"""Anchors: fixed boxes on a grid for each class (SECOND, Sensors 2018, 18(10), 3337, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pcdet_freeze.utils.settings.rules import Angle, Count, Length, Place, Rule, Share, length
from pcdet_freeze.utils.settings.sections import Section

Size = Annotated[tuple[Length, ...], length(3, "three numbers above 0 [dx, dy, dz]")]
Some = Rule("a list of one entry or more", bool)


@dataclass(frozen=True)
class AnchorClass(Section):
    """One entry of ``ANCHOR_GENERATOR_CONFIG``."""

    lower_keys: ClassVar[bool] = True
    class_name: str
    anchor_sizes: Annotated[tuple[Size, ...], Some]
    """dx, dy, dz in metres"""
    anchor_rotations: Annotated[tuple[Angle, ...], Some]
    """headings in radians"""
    anchor_bottom_heights: Annotated[tuple[Place, ...], Some]
    """z of the bottom face in metres"""
    feature_map_stride: Count
    """cells of the voxel grid to one cell of the feature map"""
    matched_threshold: Share
    """overlap from which an anchor is positive"""
    unmatched_threshold: Share
    """overlap below which an anchor is negative"""
    align_center: bool = False
    """True: anchors at the centres of cells; False: from the lower to the upper border of the range"""

    def faults(self) -> Iterator[str]:
        """Thresholds the wrong way round."""
        if self.unmatched_threshold > self.matched_threshold:
            yield (
                f"unmatched_threshold must not exceed matched_threshold; got {self.unmatched_threshold} "
                f"and {self.matched_threshold}"
            )

    @property
    def per_location(self) -> int:
        """Number of anchors of this class per cell of the feature map."""
        return len(self.anchor_sizes) * len(self.anchor_rotations) * len(self.anchor_bottom_heights)


class AnchorGenerator:
    """Generates all anchors once and caches a copy per device.

    Args:
        classes: one entry per class, in the order of the outputs of the head.
        point_cloud_range: [x_min, y_min, z_min, x_max, y_max, z_max] in metres.
        grid_size: cells of the voxel grid along x, y, z.
        by_class: True: the order of outputs is class, size, rotation, height, cell (y, x); False: cell (y,
        x),
            class, height, size, rotation.
    """

    def __init__(
        self,
        classes: Sequence[AnchorClass],
        point_cloud_range: Sequence[float],
        grid_size: Sequence[int],
        by_class: bool = False,
    ) -> None:
        self.classes, self.by_class = tuple(classes), by_class
        self.range = np.asarray(point_cloud_range, dtype=np.float32)
        self.map_sizes = [tuple(int(n) // c.feature_map_stride for n in grid_size[:2]) for c in classes]
        self.num_per_location = sum(c.per_location for c in classes)
        self.anchors = [
            self._grid(c, nx, ny) for c, (nx, ny) in zip(self.classes, self.map_sizes, strict=True)
        ]
        self._on: dict[torch.device, Tensor] = {}

    def all(self, device: torch.device) -> Tensor:
        """(A, 7) anchors [x, y, z, dx, dy, dz, heading] in the order of outputs."""
        return self._cells(device).view(-1, 7)

    def per_class(self, device: torch.device) -> tuple[Tensor, ...]:
        """Anchors of each class: (cells, anchors per cell, 7), or with by_class (1, anchors, 7)."""
        cells = 1 if self.by_class else self.map_sizes[0][0] * self.map_sizes[0][1]
        return self._cells(device).split([a.numel() // 7 // cells for a in self.anchors], dim=1)

    def _cells(self, device: torch.device) -> Tensor:
        """(cells, anchors per cell, 7), or with by_class (1, anchors, 7); cached per device."""
        if device not in self._on:
            parts = [
                anchors.permute(3, 4, 0, 1, 2, 5).reshape(1, -1, 7)
                if self.by_class
                else anchors.permute(1, 2, 0, 3, 4, 5).reshape(-1, c.per_location, 7)
                for anchors, c in zip(self.anchors, self.classes, strict=True)
            ]
            with torch.inference_mode(False):  # a training may follow an evaluation
                self._on[device] = torch.cat(parts, dim=1).to(device)
        return self._on[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> AnchorGenerator:
        # anchors are constant, so copies of a model share them
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on": {}}

    def _grid(self, anchor: AnchorClass, nx: int, ny: int) -> Tensor:
        """(heights, ny, nx, sizes, rotations, 7) boxes [x, y, z, dx, dy, dz, heading], z of the centre."""
        xs, ys = self._places(anchor, 0, nx), self._places(anchor, 1, ny)
        sizes = torch.tensor(anchor.anchor_sizes, dtype=torch.float32)
        turns = torch.tensor(anchor.anchor_rotations, dtype=torch.float32)
        bottoms = torch.tensor(anchor.anchor_bottom_heights, dtype=torch.float32)
        boxes = torch.empty(len(bottoms), ny, nx, len(sizes), len(turns), 7)
        boxes[..., 0] = xs.view(1, 1, -1, 1, 1)
        boxes[..., 1] = ys.view(1, -1, 1, 1, 1)
        boxes[..., 2] = bottoms.view(-1, 1, 1, 1, 1)
        boxes[..., 3:6] = sizes.view(1, 1, 1, -1, 1, 3)
        boxes[..., 6] = turns
        boxes[..., 2] += boxes[..., 5] / 2
        return boxes

    def _places(self, anchor: AnchorClass, axis: int, count: int) -> Tensor:
        """``count`` positions along x (axis 0) or y (axis 1), metres."""
        # float32 range, float64 step and torch.arange reproduce the rounding of the published anchors exactly
        low, high = self.range[axis], self.range[axis + 3]
        step = float(high - low) / (count if anchor.align_center else max(count - 1, 1))
        start = float(low) + (step / 2 if anchor.align_center else 0.0)
        return torch.arange(start, start + (count - 0.5) * step, step, dtype=torch.float32)
