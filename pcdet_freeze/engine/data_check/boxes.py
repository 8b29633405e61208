"""Findings about boxes: where they are, what they hold, their classes and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pcdet_freeze.engine.data_check.expected import DataFinding, Expected, Level
from pcdet_freeze.engine.data_check.files import Frames
from pcdet_freeze.utils.settings.names import did_you_mean

AXES = "xyz"
OUTSIDE = (0.75, 0.75, 0.05)
"""share of a class's boxes outside in x, y, z above which it is a finding: labels often reach further than
the range in x and y, but the range in z should hold all objects"""
LOST = 0.95
"""share of boxes that are lost above which a class cannot be learned"""
ENOUGH = 10
"""boxes of a class from which on a share of them is an error"""
SOME = 3
"""boxes of a class from which on their sizes are compared"""
EMPTY = 0.2
"""share of boxes in range without a point"""
FEW = 5
"""points of a box that are few"""
UNMATCHED = 0.5
"""share of boxes that fit no anchor"""
HEIGHT = 1.0
"""metres between the bottoms of boxes and of anchors"""


@dataclass(frozen=True)
class ClassBoxes:
    """All boxes of one class."""

    name: str
    boxes: np.ndarray
    """(K, 7)"""
    points: np.ndarray
    """(K,) points in each"""
    inside: np.ndarray
    """(K,) centre in POINT_CLOUD_RANGE"""

    def __len__(self) -> int:
        return len(self.boxes)


def boxes_by_class(frames: Frames, expected: Expected) -> dict[str, ClassBoxes]:
    """Boxes of each name that occurs, CLASS_NAMES first."""
    own = [frame for frame in frames if frame.boxes is not None]
    names = np.concatenate([*(frame.names for frame in own), np.zeros(0, "U1")])
    boxes = np.concatenate([*(frame.boxes for frame in own if frame.boxes is not None), np.zeros((0, 7))])
    points = np.concatenate([*(frame.box_points for frame in own), np.zeros(0, np.int64)])
    inside = ((boxes[:, :3] >= expected.limits[:3]) & (boxes[:, :3] <= expected.limits[3:])).all(axis=1)
    order = dict.fromkeys([*expected.class_names, *sorted(set(names.tolist()))])
    mine = {name: names == name for name in order}
    return {name: ClassBoxes(name, boxes[i], points[i], inside[i]) for name, i in mine.items()}


def _trained(frames: Frames, expected: Expected) -> list[ClassBoxes]:
    """The classes that a head learns and that have boxes; none where no head learns boxes."""
    if "gt_boxes" not in expected.learned:
        return []
    found = boxes_by_class(frames, expected)
    return [found[name] for name in _learned(expected) if len(found[name])]


def _learned(expected: Expected) -> tuple[str, ...]:
    return expected.class_names if expected.trained is None else expected.trained


def classes_without_labels(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Classes that a head learns and no box has."""
    labelled = [frame for frame in frames if frame.boxes is not None]
    if "gt_boxes" not in expected.learned or not expected.complete or not labelled:
        return
    counts = Counter(name for frame in labelled for name in frame.names.tolist())
    missing = [name for name in _learned(expected) if not counts[name]]
    if not missing:
        return
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common(8)) or "none"
    hint = did_you_mean(missing[0], [name for name in counts if name not in expected.class_names])
    none_left = len(missing) == len(_learned(expected))
    yield DataFinding(
        "class_without_labels",
        "error" if none_left else "warning",
        f"no box of {len(labelled)} frames is of class {', '.join(missing)} (boxes: {listed}){hint}",
    )


def unnamed_classes(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Boxes whose label no class of the config has: nothing learns from them."""
    if "gt_boxes" not in expected.learned:
        return
    names = Counter(name for frame in frames for name in frame.names.tolist())
    others = Counter({name: count for name, count in names.items() if name not in expected.class_names})
    if others:
        listed = ", ".join(f"{name} {count}" for name, count in others.most_common(12))
        yield DataFinding(
            "unnamed_class",
            "note",
            f"{others.total()} of {names.total()} boxes are of classes that CLASS_NAMES does not list, and "
            f"are not learned: {listed}",
        )


def boxes_outside(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Classes whose boxes lie outside of POINT_CLOUD_RANGE, by axis."""
    trained = _trained(frames, expected)
    none_left = bool(trained) and not any(found.inside.any() for found in trained)
    for found in trained:
        lost = 1 - found.inside.mean()
        fatal = none_left or (lost >= LOST and len(found) >= ENOUGH)
        for axis, most in enumerate(OUTSIDE):
            at, low, high = found.boxes[:, axis], expected.limits[axis], expected.limits[axis + 3]
            outside = (at < low) | (at > high)
            if outside.mean() > most or (fatal and outside.mean() > LOST):
                level: Level = "error" if fatal else "warning"
                yield DataFinding("boxes_outside", level, _outside_text(found, axis, at[outside], low, high))


def _outside_text(found: ClassBoxes, axis: int, at: np.ndarray, low: float, high: float) -> str:
    ends = f"ends at {high:.1f}"
    if (at < low).all():
        ends = f"begins at {low:.1f}"
    elif (at < low).any():
        ends = f"is {low:.1f} to {high:.1f}"
    first, last = f"{at.min():.1f}", f"{at.max():.1f}"
    place = f"{first} to {last} m" if first != last else f"{first} m"
    return (
        f"{len(at)} of {len(found)} boxes of class {found.name} lie outside POINT_CLOUD_RANGE in "
        f"{AXES[axis]} (they are at {place}, the range {ends})"
    )


def empty_boxes(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Classes whose boxes in range hold no point, or few."""
    for found in _trained(frames, expected):
        points = found.points[found.inside]
        if not len(points):
            continue
        empty = int((points == 0).sum())
        if empty > EMPTY * len(points):
            fatal = empty >= LOST * len(points) and len(points) >= ENOUGH
            yield DataFinding(
                "empty_boxes",
                "error" if fatal else "warning",
                f"{empty} of {len(points)} boxes of class {found.name} in range hold no point. Do boxes and "
                "points have the same frame, and the boxes their centre in the middle?",
            )
        elif np.median(points) < FEW:
            yield DataFinding(
                "few_points",
                "warning",
                f"half of the {len(points)} boxes of class {found.name} in range hold {np.median(points):g} "
                "points or fewer",
            )


def boxes_against_anchors(frames: Frames, expected: Expected) -> Iterator[DataFinding]:
    """Classes whose boxes are of other sizes, or at another height, than their anchors."""
    for found in _trained(frames, expected):
        anchors = expected.anchors.get(found.name)
        boxes, standing = found.boxes, found.boxes[found.inside]
        if anchors is None or len(boxes) < SOME:
            continue
        unmatched = int((best_overlaps(boxes[:, 3:5], anchors.sizes[:, :2]) < anchors.matched).sum())
        if unmatched > UNMATCHED * len(boxes):
            length, width, height = np.median(boxes[:, 3:6], axis=0)
            sizes = ", ".join(" x ".join(f"{edge:g}" for edge in size) for size in anchors.sizes)
            yield DataFinding(
                "anchor_size",
                "warning",
                f"boxes of class {found.name} measure {length:.1f} x {width:.1f} x {height:.1f} m (median), "
                f"the anchors {sizes}: {unmatched} of {len(boxes)} overlap no anchor by matched_threshold "
                f"{anchors.matched:g}, even at the same place",
            )
        if not len(standing):
            continue
        bottom = float(np.median(standing[:, 2] - standing[:, 5] / 2))
        nearest = min(anchors.bottoms, key=lambda height: abs(height - bottom))
        if abs(nearest - bottom) > HEIGHT:
            yield DataFinding(
                "anchor_height",
                "warning",
                f"boxes of class {found.name} stand at z = {bottom:.1f} m (median of their bottoms), the "
                f"anchors at {nearest:.1f} m (anchor_bottom_heights)",
            )


def best_overlaps(boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(K,) greatest IoU in BEV of sizes (K, 2) with anchors (A, 2) at the same place and heading."""
    shared = np.minimum(boxes[:, None], anchors[None]).prod(axis=2)
    union = boxes.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - shared
    return np.asarray((shared / np.maximum(union, 1e-9)).max(axis=1))
