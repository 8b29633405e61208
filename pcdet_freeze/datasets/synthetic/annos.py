"""What a detector should find in a simulated scene, as a KITTI annotation dict (see ``lidar_annos``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.lidar_annos import Anno, add_levels, boxes_to_anno, in_range
from pcdet_freeze.datasets.synthetic.labels import occlusion_level
from pcdet_freeze.datasets.synthetic.render import Frame


def ground_truth_anno(frame: Frame, frame_id: str, limits: NDArray[np.float32], min_points: int) -> Anno:
    """The objects of a frame; ``occluded`` by :func:`occlusion_level`.

    It is 3 (never counted, never punished) also where the box's centre is outside ``limits`` in x or y.
    """
    anno = boxes_to_anno(frame.boxes, frame.names, frame_id)
    counted = in_range(frame.boxes, limits)
    levels = [
        occlusion_level(share, number, min_points) if inside else 3
        for share, number, inside in zip(frame.occlusion, frame.num_points, counted, strict=True)
    ]
    return add_levels(anno, levels, frame.num_points)
