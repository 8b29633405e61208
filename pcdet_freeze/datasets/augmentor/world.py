"""Flip, rotation and scaling of the whole scene about the sensor, and its translation.

Each function takes a sample and returns a new one in which points, boxes (velocities in columns 7 and 8
too) and the lane map have moved; what it does not move is shared with the old one. Points keep their order,
and so their labels. Lane lines are numbered from left to right: where left and right change places (a mirror
at the x axis, a turn by more than a right angle), the numbers run the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pcdet_freeze.datasets.augmentor.context import AugmentorContext
from pcdet_freeze.datasets.augmentor.raster import flip_raster, mirror_numbers, resample_raster
from pcdet_freeze.datasets.registry import AUGMENTORS, Config, Sample, check_keys, require
from pcdet_freeze.errors import ConfigError

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


@AUGMENTORS.register_as("random_world_flip")
class RandomWorldFlip:
    """Mirrors with probability one half for each axis in ``ALONG_AXIS_LIST``."""

    def __init__(self, cfg: Config, context: AugmentorContext) -> None:
        check_keys(cfg["NAME"], cfg, {"NAME", "ALONG_AXIS_LIST"})
        self.axes = list(require(cfg["NAME"], cfg, "ALONG_AXIS_LIST"))
        self.limits = context.point_cloud_range
        if not set(self.axes) <= {"x", "y"}:
            raise ConfigError(f"random_world_flip.ALONG_AXIS_LIST may hold x and y; got {self.axes}")

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        for axis in self.axes:
            if rng.random_sample() >= 0.5:
                sample = flip_world(sample, axis, self.limits)
        return sample


@AUGMENTORS.register_as("random_world_rotation")
class RandomWorldRotation:
    """Turns by an angle uniform in ``WORLD_ROT_ANGLE`` [low, high] (radians; one number a: [-a, a])."""

    def __init__(self, cfg: Config, context: AugmentorContext) -> None:
        check_keys(cfg["NAME"], cfg, {"NAME", "WORLD_ROT_ANGLE"})
        value = require(cfg["NAME"], cfg, "WORLD_ROT_ANGLE")
        self.low, self.high = _bounds(
            "random_world_rotation.WORLD_ROT_ANGLE",
            [-value, value] if isinstance(value, (int, float)) else value,
        )
        self.limits = context.point_cloud_range

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        return rotate_world(sample, rng.uniform(self.low, self.high), self.limits)


@AUGMENTORS.register_as("random_world_scaling")
class RandomWorldScaling:
    """Stretches by a factor uniform in ``WORLD_SCALE_RANGE`` [low, high]; under 1e-3 wide it does nothing."""

    def __init__(self, cfg: Config, context: AugmentorContext) -> None:
        check_keys(cfg["NAME"], cfg, {"NAME", "WORLD_SCALE_RANGE"})
        self.low, self.high = _bounds(
            "random_world_scaling.WORLD_SCALE_RANGE", require(cfg["NAME"], cfg, "WORLD_SCALE_RANGE")
        )
        if self.low <= 0:
            raise ConfigError(f"random_world_scaling.WORLD_SCALE_RANGE must be positive; got {self.low}")
        self.limits = context.point_cloud_range

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        if self.high - self.low < 1e-3:
            return sample
        return scale_world(sample, rng.uniform(self.low, self.high), self.limits)


@AUGMENTORS.register_as("random_world_translation")
class RandomWorldTranslation:
    """Moves by normal draws, x, then y, then z; ``NOISE_TRANSLATE_STD``: their deviations in metres."""

    def __init__(self, cfg: Config, context: AugmentorContext) -> None:
        check_keys(cfg["NAME"], cfg, {"NAME", "NOISE_TRANSLATE_STD"})
        value = require(cfg["NAME"], cfg, "NOISE_TRANSLATE_STD")
        try:
            self.deviations = np.array(value, np.float64).reshape(3)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"random_world_translation.NOISE_TRANSLATE_STD must be [x, y, z]; got {value!r}"
            ) from error
        if not (self.deviations >= 0).all():
            raise ConfigError(
                f"random_world_translation.NOISE_TRANSLATE_STD must not be negative; got {value}"
            )
        self.limits = context.point_cloud_range

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        shift = np.array([rng.normal(0, deviation) for deviation in self.deviations], np.float32)
        return translate_world(sample, shift, self.limits)


def _bounds(where: str, value: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} must be [low, high]; got {value!r}") from error
    if low > high:
        raise ConfigError(f"{where} must be [low, high] with low <= high; got {value!r}")
    return low, high
