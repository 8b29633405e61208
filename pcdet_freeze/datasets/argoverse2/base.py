"""What the data sets of Argoverse 2 share: names of boxes, point labels, lane maps, annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.boundaries import longest_inside
from pcdet_freeze.datasets.argoverse2.settings import GROUND, OTHER, BoundarySettings
from pcdet_freeze.datasets.argoverse2.sweep import Boxes, Sweep
from pcdet_freeze.datasets.labels.lidar_annos import LidarAnnos, add_levels, boxes_to_anno, in_range
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.ops.lanes import draw_lines


class SweepFrames(LidarAnnos, DatasetTemplate):
    """Frames that are sweeps of Argoverse 2, in the vehicle's frame.

    x forward, y left, z up, origin at the rear axle, so the ground is near z = -0.3.
    """

    class_map: Mapping[str, str]
    """Argoverse's category -> name of the box"""
    boundaries: BoundarySettings | None
    min_points: int

    def names(self, found: Boxes) -> np.ndarray:
        """(K,) names of cuboids by CLASS_MAP."""
        return np.array([self.class_map.get(category, category) for category in found.categories], dtype=str)

    def classes_of(self, points: np.ndarray, found: Boxes, ground: np.ndarray) -> np.ndarray:
        """(N,) int64: what a box says of its points, except those that are ``ground`` (N,)."""
        number = {name: label for label, name in enumerate(self.semantic_class_names)}
        labels = np.full(len(points), number[OTHER], np.int64)
        inside = points_in_boxes_mask(points[:, :3], found.boxes, margin=0.0)
        for name, mask in zip(self.names(found), inside, strict=True):
            labels[mask] = number.get(name, number[OTHER])
        labels[ground] = number[GROUND]
        return labels

    def lane_map(self, sweep: Sweep) -> np.ndarray:
        """(H, W) uint8: the lines of the map in range, numbered from left to right."""
        assert self.boundaries is not None and self.lane_map_shape is not None
        lines = sweep.lane_lines(self.point_cloud_range, self.boundaries.painted_only)
        lines = longest_inside(lines, self.point_cloud_range, self.boundaries.max_lines)
        return draw_lines(lines, self.point_cloud_range, self.lane_map_shape, self.boundaries.width)

    def anno(self, sweep: Sweep) -> dict[str, Any]:
        """KITTI annotation dict of a sweep (see ``lidar_annos``); all that counts is 'easy'."""
        found = sweep.boxes()
        counts = (found.num_points >= self.min_points) & in_range(found.boxes, self.point_cloud_range)
        anno = boxes_to_anno(found.boxes, self.names(found), sweep.name)
        return add_levels(anno, np.where(counts, 0, 3), found.num_points)
