"""Intersection over union in the image, in BEV and in 3D between the objects of each frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_freeze.evaluation.kitti.tables import Detections, Floats, Ints, Labels, Objects
from pcdet_freeze.ops.iou import rotated_intersection

MIN_OVERLAP = 0.25
"""Minimum over all classes; pairs with less overlap are discarded."""


@dataclass(frozen=True)
class Pairs:
    """P pairs (label, detection) of the same frame, sorted by label, then by detection."""

    label: Ints
    detection: Ints
    overlap: dict[str, Floats]
    """(P,) for image, bev and 3d."""


def image_intersection(a: Floats, b: Floats) -> Floats:
    """(N, M) intersection in pixels^2 of boxes (N, 4) and (M, 4) [left, top, right, bottom]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def image_overlap(a: Floats, b: Floats) -> Floats:
    """(N, M) intersection over union of image boxes (N, 4) and (M, 4)."""
    return _over_union(image_intersection(a, b), _image_area(a), _image_area(b))


def box_overlaps(a: Objects, b: Objects, rows_a: Ints | slice, rows_b: Ints | slice) -> tuple[Floats, Floats]:
    """IoU in BEV (N, M) and in 3D (N, M) of N objects of ``a`` and M objects of ``b``."""
    size_a, size_b = a.dimensions[rows_a], b.dimensions[rows_b]
    ground = rotated_intersection(_footprints(a, rows_a), _footprints(b, rows_b))
    area_a, area_b = size_a[:, 0] * size_a[:, 2], size_b[:, 0] * size_b[:, 2]
    # y points down and the location is the bottom, so a box spans [y - h, y]
    bottom_a, bottom_b = a.location[rows_a, 1], b.location[rows_b, 1]
    low = np.minimum(bottom_a[:, None], bottom_b[None])
    high = np.maximum((bottom_a - size_a[:, 1])[:, None], (bottom_b - size_b[:, 1])[None])
    volume = ground * np.clip(low - high, 0, None)
    return (
        _over_union(ground, area_a, area_b),
        _over_union(volume, area_a * size_a[:, 1], area_b * size_b[:, 1]),
    )


def find_pairs(labels: Labels, detections: Detections) -> Pairs:
    """Overlapping label-detection pairs of each frame, in any metric; DontCare regions are excluded."""
    label, detection = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    values = [np.zeros((3, 0))]
    cared_for = ~labels.dont_care
    for frame in range(len(labels.first) - 1):
        rows = labels.first[frame] + np.flatnonzero(cared_for[labels.first[frame] : labels.first[frame + 1]])
        columns = np.arange(detections.first[frame], detections.first[frame + 1])
        if len(rows) == 0 or len(columns) == 0:
            continue
        image = image_overlap(labels.bbox[rows], detections.bbox[columns])
        overlaps = np.stack([image, *box_overlaps(labels, detections, rows, columns)])
        i, j = np.nonzero((overlaps > MIN_OVERLAP).any(axis=0))
        label.append(rows[i])
        detection.append(columns[j])
        values.append(overlaps[:, i, j])
    image, bev, volume = np.concatenate(values, axis=1)
    return Pairs(np.concatenate(label), np.concatenate(detection), {"image": image, "bev": bev, "3d": volume})


def dont_care_cover(labels: Labels, detections: Detections) -> Floats:
    """(detections,) largest fraction of the image box of each detection covered by one DontCare region."""
    cover = np.zeros(len(detections.name))
    regions = labels.dont_care
    for frame in range(len(labels.first) - 1):
        mine = slice(labels.first[frame], labels.first[frame + 1])
        region = labels.bbox[mine][regions[mine]]
        found = slice(detections.first[frame], detections.first[frame + 1])
        bbox = detections.bbox[found]
        if len(region) and len(bbox):
            cover[found] = _ratio(image_intersection(bbox, region), _image_area(bbox)[:, None]).max(axis=1)
    return cover


def _footprints(objects: Objects, rows: Ints | slice) -> Floats:
    """(N, 5) rectangles on the ground plane: x, z, length, width, angle.

    rotation_y is about the downward axis, which is clockwise in the plane with x right and z up.
    """
    location, size = objects.location[rows], objects.dimensions[rows]
    return np.stack(
        [location[:, 0], location[:, 2], size[:, 0], size[:, 2], -objects.rotation_y[rows]], axis=1
    )


def _image_area(boxes: Floats) -> Floats:
    area: Floats = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return area


def _over_union(intersection: Floats, of_a: Floats, of_b: Floats) -> Floats:
    return _ratio(intersection, of_a[:, None] + of_b[None] - intersection)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, or 0 if whole is 0 (boxes without extent)."""
    whole = np.broadcast_to(whole, part.shape)
    ratio: Floats = np.divide(part, whole, out=np.zeros_like(part), where=(part > 0) & (whole > 0))
    return ratio
