"""Processors that choose and order points."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.datasets.frames import keep_boxes, keep_points
from pcdet_freeze.datasets.processor.context import ProcessorContext
from pcdet_freeze.datasets.registry import PROCESSORS, Config, Sample, check_keys
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.ops.boxes import mask_boxes_outside_range

FAR = 40.0
"""Distance in metres from which points are kept first when points are sampled (PointRCNN's figure)."""


def points_in_range(points: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Mask (N,) of the points whose x and y lie in the range, both bounds included; z is not tested."""
    inside = (points[:, :2] >= limits[:2]) & (points[:, :2] <= limits[3:5])
    return inside.all(axis=1)


@PROCESSORS.register_as("mask_points_and_boxes_outside_range")
class MaskOutsideRange:
    """Drops points outside the range (x and y) and, in training, boxes outside of it.

    Keys: ``REMOVE_OUTSIDE_BOXES``; ``USE_CENTER_TO_FILTER`` (default True: a box stays if its centre is
    inside) or else ``min_num_corners`` (default 1) of its eight corners must be inside in x and y.
    """

    random = False

    def __init__(self, cfg: Config, context: ProcessorContext) -> None:
        check_keys(
            cfg["NAME"], cfg, {"NAME", "REMOVE_OUTSIDE_BOXES", "USE_CENTER_TO_FILTER", "min_num_corners"}
        )
        self.limits = context.point_cloud_range
        self.boxes_too = bool(cfg.get("REMOVE_OUTSIDE_BOXES", False)) and context.training
        self.use_center = bool(cfg.get("USE_CENTER_TO_FILTER", True))
        self.min_num_corners = int(cfg.get("min_num_corners", 1))

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


@PROCESSORS.register_as("shuffle_points")
class ShufflePoints:
    """Puts the points and their labels in random order. Key: ``SHUFFLE_ENABLED`` {train, test}."""

    def __init__(self, cfg: Config, context: ProcessorContext) -> None:
        check_keys(cfg["NAME"], cfg, {"NAME", "SHUFFLE_ENABLED"})
        self.enabled = self.random = bool(context.of_mode(cfg["NAME"], cfg, "SHUFFLE_ENABLED"))

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        if self.enabled:
            keep_points(sample, rng.permutation(len(sample["points"])))
        return sample


@PROCESSORS.register_as("sample_points")
class SamplePoints:
    """Exactly ``NUM_POINTS`` {train, test} points in random order; -1 leaves all of them as they are.

    Points farther than 40 m come first, since they are few; too few points are repeated.
    """

    def __init__(self, cfg: Config, context: ProcessorContext) -> None:
        check_keys(cfg["NAME"], cfg, {"NAME", "NUM_POINTS"})
        self.number = int(context.of_mode(cfg["NAME"], cfg, "NUM_POINTS"))
        self.random = self.number != -1
        if self.number < 1 and self.number != -1:
            raise ConfigError(f"sample_points.NUM_POINTS must be positive, or -1 for all; got {self.number}")

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
