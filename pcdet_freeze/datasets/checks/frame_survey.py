"""What one frame of a data set holds, in a few numbers: points, columns, boxes, classes, lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcdet_freeze.datasets.frames import IGNORE
from pcdet_freeze.datasets.processor.voxels import PointsToVoxels
from pcdet_freeze.datasets.reading.timed_reads import ReadTimeoutError
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask

QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)
"""of each column beyond x, y, z"""
XYZ = 3


@dataclass
class FrameSurvey:
    """Numbers of one raw frame, not augmented; small enough to send between processes."""

    index: int
    name: str
    part: str = ""
    """name of the set, where the frame is of a joined one"""
    error: str = ""
    """why it cannot be read; then all else is empty"""
    points: int = 0
    in_range: int = 0
    """points in POINT_CLOUD_RANGE, in x, y and z"""
    columns: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """column beyond x, y, z -> QUANTILES of its values"""
    voxels: int = 0
    """occupied voxels; 0 where the data processor makes none"""
    boxes: np.ndarray | None = None
    """(K, 7) labelled boxes, of all names; None: no box labels"""
    names: np.ndarray = field(default_factory=lambda: np.zeros(0, "U1"))
    """(K,) names of the boxes"""
    box_points: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,) points in each box"""
    point_classes: np.ndarray | None = None
    """(C + 1,) points of each class, at the end those without one; None: no point labels"""
    lanes: int | None = None
    """different lines in the lane map; None: no lane map"""
    last_lane: int = -1
    """highest number of a line"""


def survey_frame(dataset: Any, index: int) -> FrameSurvey:
    """Read raw frame ``index`` and count; a frame that cannot be read has an ``error``.

    Nothing of the data set changes, and no random number is drawn. Raises ReadTimeoutError for a read that
    does not return within the enclosing ``reads_within``.
    """
    found = FrameSurvey(index, str(index))
    try:
        found.name = str(dataset.frame_name(index))
        found.part = part_of(dataset, index)
        _count(found, dataset, dataset.load_sample(index))
    except ReadTimeoutError:
        raise
    except Exception as error:  # what a data set of one's own raises for a bad file can be anything
        kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
        return FrameSurvey(index, found.name, found.part, f"{kind}{error}" or type(error).__name__)
    return found


def part_of(dataset: Any, index: int) -> str:
    """Name of the set of a joined one that frame ``index`` is of; empty for other data sets."""
    parts = getattr(dataset, "parts", ())
    return next((part.name for part in parts if part.frames.start <= index < part.frames.stop), "")


def _count(found: FrameSurvey, dataset: Any, sample: dict[str, Any]) -> None:
    points, limits = np.asarray(sample["points"]), np.asarray(dataset.point_cloud_range)
    xyz = points[:, :XYZ]
    found.points = len(points)
    found.in_range = int(((xyz >= limits[:3]) & (xyz <= limits[3:])).all(axis=1).sum())
    if len(points):
        names = dataset.point_feature_encoder.src_feature_list[XYZ:]
        for number, name in enumerate(names, XYZ):
            found.columns[name] = tuple(np.quantile(points[:, number], QUANTILES).tolist())
    found.voxels = _occupied(dataset.data_processor.steps, xyz, limits)
    if sample.get("gt_boxes") is not None:
        found.boxes = np.asarray(sample["gt_boxes"], np.float64)[:, :7]
        found.names = np.asarray(sample["gt_names"], dtype=str)
        found.box_points = points_in_boxes_mask(xyz, found.boxes.astype(xyz.dtype)).sum(axis=1)
    if sample.get("point_labels") is not None:
        found.point_classes = _classes(np.asarray(sample["point_labels"]), dataset.semantic_class_names)
    if sample.get("lane_map") is not None:
        lines = np.unique(sample["lane_map"]).astype(np.int64)
        lines = lines[lines != IGNORE]
        found.lanes, found.last_lane = len(lines), int(lines.max(initial=-1))


def _classes(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    known = len(names)
    wrong = np.unique(labels[(labels != IGNORE) & ((labels < 0) | (labels >= known))])
    if known and len(wrong):
        raise DataError(
            f"point_labels must be 0..{known - 1} ({known} semantic classes) or {IGNORE}; got "
            f"{', '.join(map(str, wrong[:8].tolist()))}"
        )
    counts = np.bincount(labels[labels != IGNORE], minlength=known)
    return np.append(counts, int((labels == IGNORE).sum()))


def _occupied(steps: Sequence[Any], xyz: np.ndarray, limits: np.ndarray) -> int:
    """Number of voxels with a point; 0 without a step that makes voxels."""
    step = next((step for step in steps if isinstance(step, PointsToVoxels)), None)
    if step is None:
        return 0
    # in float32, as the voxelizer computes them
    size, lower = np.array(step.voxel_size, np.float32), limits[:3].astype(np.float32)
    cells = np.floor((xyz.astype(np.float32) - lower) / size).astype(np.int64)
    cells = cells[((cells >= 0) & (cells < step.grid_size)).all(axis=1)]
    return len(np.unique((cells[:, 2] * step.grid_size[1] + cells[:, 1]) * step.grid_size[0] + cells[:, 0]))
