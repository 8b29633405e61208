"""Processors that choose and order points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from pcdet_freeze.datasets.frames import keep_boxes, keep_points
from pcdet_freeze.datasets.processor.context import ProcessorContext
from pcdet_freeze.datasets.registry import PROCESSORS, Sample
from pcdet_freeze.datasets.settings import Modes
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import mask_boxes_outside_range
from pcdet_freeze.utils.settings.rules import Key, Rule, whole
from pcdet_freeze.utils.settings.sections import Section

FAR = 40.0
"""Distance in metres from which points are kept first when points are sampled (PointRCNN's figure)."""


def points_in_range(points: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Mask (N,) of the points whose x and y lie in the range, both bounds included; z is not tested."""
    inside = np.ones(len(points), bool)
    for axis in (0, 1):  # numpy's all() over two columns takes four times as long
        column = points[:, axis]
        # bounds are arrays: a number would be compared in the precision of the column
        inside &= column >= limits[axis : axis + 1]
        inside &= column <= limits[3 + axis : 4 + axis]
    return inside


@dataclass(frozen=True)
class MaskSettings(Section):
    """Keys of mask_points_and_boxes_outside_range."""

    remove_outside_boxes: bool = False
    """in training, boxes outside of the range are dropped too"""
    use_center_to_filter: bool = True
    """a box stays if its centre is inside"""
    min_num_corners: Annotated[int, Key("min_num_corners"), whole(1)] = 1
    """without USE_CENTER_TO_FILTER: so many of its eight corners must be inside in x and y"""


@PROCESSORS.register_as("mask_points_and_boxes_outside_range")
class MaskOutsideRange:
    """Drops points outside the range (x and y) and, in training, boxes outside of it."""

    Settings = MaskSettings
    random = False

    def __init__(self, settings: MaskSettings, context: ProcessorContext) -> None:
        self.limits = context.point_cloud_range
        self.boxes_too = settings.remove_outside_boxes and context.training
        self.use_center = settings.use_center_to_filter
        self.min_num_corners = settings.min_num_corners

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        keep_points(sample, points_in_range(sample["points"], self.limits))
        if self.boxes_too and sample.get("gt_boxes") is not None:
            keep_boxes(
                sample,
                mask_boxes_outside_range(
                    sample["gt_boxes"][:, :7], self.limits, self.min_num_corners, self.use_center
                ),
            )
        return sample


@dataclass(frozen=True)
class ShuffleSettings(Section):
    """Keys of shuffle_points."""

    shuffle_enabled: Modes[bool]


@PROCESSORS.register_as("shuffle_points")
class ShufflePoints:
    """Puts the points and their labels in random order."""

    Settings = ShuffleSettings

    def __init__(self, settings: ShuffleSettings, context: ProcessorContext) -> None:
        self.enabled = self.random = settings.shuffle_enabled.of(context.training)

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        if self.enabled:
            keep_points(sample, rng.permutation(len(sample["points"])))
        return sample


@dataclass(frozen=True)
class SampleSettings(Section):
    """Keys of sample_points."""

    num_points: Modes[
        Annotated[int, Rule("a number of points, 1 or more, or -1 for all", lambda n: n == -1 or n >= 1)]
    ]


@PROCESSORS.register_as("sample_points")
class SamplePoints:
    """Exactly ``NUM_POINTS`` points in random order; -1 leaves all of them as they are.

    Points farther than 40 m come first, since they are few; too few points are repeated.
    """

    Settings = SampleSettings

    def __init__(self, settings: SampleSettings, context: ProcessorContext) -> None:
        self.number = settings.num_points.of(context.training)
        self.random = self.number != -1

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        if self.number != -1:
            points = sample["points"]
            if len(points) == 0:
                raise DataError(
                    f"frame {sample.get('frame_id')}: sample_points needs a point in range; got none"
                )
            keep_points(sample, rng.permutation(pick_points(points, self.number, rng)))
        return sample


def pick_points(points: np.ndarray, number: int, rng: np.random.RandomState) -> np.ndarray:
    """Indices (number,) into ``points`` (N, 3+): far ones first, without repetition where N suffices."""
    total = len(points)
    if total < number:
        more = rng.choice(total, number - total, replace=number - total > total)
        return np.concatenate([np.arange(total), more])
    far = np.linalg.norm(points[:, :3], axis=1) >= FAR
    kept, rest = np.flatnonzero(far), np.flatnonzero(~far)
    if len(kept) > number:
        return rng.choice(total, number, replace=False)
    return np.concatenate([kept, rng.choice(rest, number - len(kept), replace=False)])
