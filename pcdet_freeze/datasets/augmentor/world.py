"""Flip, rotation and scaling of the whole scene about the sensor, and its translation.

Each function takes a sample and returns a new one in which points, boxes (velocities in columns 7 and 8
too) and the lane map have moved; what it does not move is shared with the old one. Points keep their order,
and so their labels. Lane lines are numbered from left to right: where left and right change places (a mirror
at the x axis, a turn by more than a right angle), the numbers run the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from pcdet_freeze.datasets.augmentor.context import AugmentorContext
from pcdet_freeze.datasets.augmentor.raster import flip_raster, mirror_numbers, resample_raster
from pcdet_freeze.datasets.registry import AUGMENTORS, Sample
from pcdet_freeze.utils.settings.rules import Angle, Rule, at_least, between, length
from pcdet_freeze.utils.settings.sections import Section

Move = Callable[[np.ndarray], np.ndarray]


def flip_world(sample: Sample, axis: str, limits: np.ndarray) -> Sample:
    """Mirror at the x axis (``axis='x'``: y changes sign) or at the y axis (x changes sign)."""
    column = {"x": 1, "y": 0}[axis]

    def points(rows: np.ndarray) -> np.ndarray:
        rows[:, column] *= -1
        return rows

    def boxes(rows: np.ndarray) -> np.ndarray:
        rows[:, column] *= -1
        rows[:, 6] = -rows[:, 6] if axis == "x" else -(rows[:, 6] + np.float32(np.pi))
        if rows.shape[1] > 8:
            rows[:, 7 + column] *= -1
        return rows

    def lanes(raster: np.ndarray) -> np.ndarray:
        return flip_raster(mirror_numbers(raster) if axis == "x" else raster, axis, limits)

    return _moved(sample, points, boxes, lanes)


def rotate_world(sample: Sample, angle: float, limits: np.ndarray) -> Sample:
    """Turn by ``angle`` radians, counter-clockwise as seen from above."""
    cos, sin = np.cos(np.float32(angle)), np.sin(np.float32(angle))
    turn = np.array([[cos, sin], [-sin, cos]], np.float32)  # for row vectors

    def points(rows: np.ndarray) -> np.ndarray:
        rows[:, :2] = rows[:, :2] @ turn
        return rows

    def boxes(rows: np.ndarray) -> np.ndarray:
        rows = points(rows)
        rows[:, 6] += angle
        if rows.shape[1] > 8:
            rows[:, 7:9] = rows[:, 7:9] @ turn
        return rows

    def lanes(raster: np.ndarray) -> np.ndarray:
        return resample_raster(mirror_numbers(raster) if cos < -1e-6 else raster, limits, turn.T)

    return _moved(sample, points, boxes, lanes)


def scale_world(sample: Sample, factor: float, limits: np.ndarray) -> Sample:
    """Stretch all lengths and velocities by ``factor``."""

    def points(rows: np.ndarray) -> np.ndarray:
        rows[:, :3] *= factor
        return rows

    def boxes(rows: np.ndarray) -> np.ndarray:
        rows[:, :6] *= factor
        rows[:, 7:9] *= factor
        return rows

    return _moved(sample, points, boxes, lambda lanes: resample_raster(lanes, limits, np.eye(2) / factor))


def translate_world(sample: Sample, shift: np.ndarray, limits: np.ndarray) -> Sample:
    """Move by ``shift`` (3,) metres."""

    def move(rows: np.ndarray) -> np.ndarray:
        rows[:, :3] += shift.astype(rows.dtype)
        return rows

    return _moved(sample, move, move, lambda lanes: resample_raster(lanes, limits, np.eye(2), shift[:2]))


def _moved(sample: Sample, points: Move, boxes: Move, lanes: Move) -> Sample:
    moved = dict(sample)
    for key, move in (("points", points), ("gt_boxes", boxes)):
        if moved.get(key) is not None:
            moved[key] = move(moved[key].copy())
    if moved.get("lane_map") is not None:
        moved["lane_map"] = lanes(moved["lane_map"])
    return moved


def _is_interval(bounds: Sequence[float]) -> bool:
    return len(bounds) == 2 and bounds[0] <= bounds[1]


Interval = Annotated[tuple[Angle, ...], Rule("[low, high] with low <= high", _is_interval)]
Factors = Annotated[
    tuple[Annotated[float, between(0, 100)], ...],
    Rule("[low, high] with 0 < low <= high", lambda bounds: _is_interval(bounds) and bounds[0] > 0),
]
Deviations = Annotated[
    tuple[Annotated[float, at_least(0)], ...], length(3, "three numbers [x, y, z], 0 or more")
]


@dataclass(frozen=True)
class FlipSettings(Section):
    """Keys of random_world_flip."""

    along_axis_list: tuple[Literal["x", "y"], ...]


@AUGMENTORS.register_as("random_world_flip")
class RandomWorldFlip:
    """Mirrors with probability one half for each axis in ``ALONG_AXIS_LIST``."""

    Settings = FlipSettings

    def __init__(self, settings: FlipSettings, context: AugmentorContext) -> None:
        self.axes = list(settings.along_axis_list)
        self.limits = context.point_cloud_range

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        for axis in self.axes:
            if rng.random_sample() >= 0.5:
                sample = flip_world(sample, axis, self.limits)
        return sample


@dataclass(frozen=True)
class RotationSettings(Section):
    """Keys of random_world_rotation."""

    world_rot_angle: Annotated[float, between(0, 2 * math.pi)] | Interval
    """radians; one number a: [-a, a]"""


@AUGMENTORS.register_as("random_world_rotation")
class RandomWorldRotation:
    """Turns by an angle uniform in ``WORLD_ROT_ANGLE``."""

    Settings = RotationSettings

    def __init__(self, settings: RotationSettings, context: AugmentorContext) -> None:
        value = settings.world_rot_angle
        self.low, self.high = (-value, value) if isinstance(value, float) else value
        self.limits = context.point_cloud_range

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        return rotate_world(sample, rng.uniform(self.low, self.high), self.limits)


@dataclass(frozen=True)
class ScalingSettings(Section):
    """Keys of random_world_scaling."""

    world_scale_range: Factors


@AUGMENTORS.register_as("random_world_scaling")
class RandomWorldScaling:
    """Stretches by a factor uniform in ``WORLD_SCALE_RANGE``; under 1e-3 wide it does nothing."""

    Settings = ScalingSettings

    def __init__(self, settings: ScalingSettings, context: AugmentorContext) -> None:
        self.low, self.high = settings.world_scale_range
        self.limits = context.point_cloud_range

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        if self.high - self.low < 1e-3:
            return sample
        return scale_world(sample, rng.uniform(self.low, self.high), self.limits)


@dataclass(frozen=True)
class TranslationSettings(Section):
    """Keys of random_world_translation."""

    noise_translate_std: Deviations
    """standard deviations in metres"""


@AUGMENTORS.register_as("random_world_translation")
class RandomWorldTranslation:
    """Moves by normal draws, x, then y, then z, of deviation ``NOISE_TRANSLATE_STD``."""

    Settings = TranslationSettings

    def __init__(self, settings: TranslationSettings, context: AugmentorContext) -> None:
        self.deviations = np.array(settings.noise_translate_std, np.float64)
        self.limits = context.point_cloud_range

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        shift = np.array([rng.normal(0, deviation) for deviation in self.deviations], np.float32)
        return translate_world(sample, shift, self.limits)
