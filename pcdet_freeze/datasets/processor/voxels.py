"""Processors that divide the range into voxels."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.datasets.processor.context import ProcessorContext
from pcdet_freeze.datasets.registry import PROCESSORS, Config, Sample, check_keys, require
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.ops.voxels import Voxelizer


def voxel_size_of(cfg: Config) -> list[float]:
    """VOXEL_SIZE as three positive floats (x, y, z in metres), else ConfigError."""
    value = require(cfg["NAME"], cfg, "VOXEL_SIZE")
    try:
        size = [float(edge) for edge in value]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cfg['NAME']}.VOXEL_SIZE must be three numbers; got {value!r}") from error
    if len(size) != 3 or min(size) <= 0:
        raise ConfigError(f"{cfg['NAME']}.VOXEL_SIZE must be three positive numbers; got {value!r}")
    return size


def grid_size_of(limits: np.ndarray, voxel_size: list[float]) -> np.ndarray:
    """Cells (x, y, z) int64 of the range ``limits`` (6,), rounded to the nearest whole number."""
    extent = limits[3:].astype(np.float64) - limits[:3].astype(np.float64)
    return np.round(extent / np.array(voxel_size)).astype(np.int64)


@PROCESSORS.register_as("transform_points_to_voxels")
class PointsToVoxels:
    """Adds voxels (M, P, C), voxel_coords (M, 3) zyx and voxel_num_points (M,); the points stay.

    Keys: ``VOXEL_SIZE``, ``MAX_POINTS_PER_VOXEL``, ``MAX_NUMBER_OF_VOXELS`` {train, test}. While ``later`` is
    set, somebody else makes them with the same ``voxelizer``.
    """

    random = False

    def __init__(self, cfg: Config, context: ProcessorContext) -> None:
        known = {"NAME", "VOXEL_SIZE", "MAX_POINTS_PER_VOXEL", "MAX_NUMBER_OF_VOXELS"}
        check_keys(cfg["NAME"], cfg, known, not_built={"DOUBLE_FLIP"})
        self.later = False
        self.voxel_size = voxel_size_of(cfg)
        self.grid_size = grid_size_of(context.point_cloud_range, self.voxel_size)
        self.voxelizer = Voxelizer(
            self.voxel_size,
            context.point_cloud_range,
            int(require(cfg["NAME"], cfg, "MAX_POINTS_PER_VOXEL")),
            int(context.of_mode(cfg["NAME"], cfg, "MAX_NUMBER_OF_VOXELS")),
            context.num_point_features,
        )

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        if self.later:
            return sample
        voxels, coords, counts = self.voxelizer(sample["points"])
        sample.update(voxels=voxels, voxel_coords=coords, voxel_num_points=counts)
        return sample


@PROCESSORS.register_as("transform_points_to_voxels_placeholder")
class PointsToVoxelsPlaceholder:
    """Only says how large the grid is; the model makes its voxels itself. Key: ``VOXEL_SIZE``."""

    random = False

    def __init__(self, cfg: Config, context: ProcessorContext) -> None:
        check_keys(cfg["NAME"], cfg, {"NAME", "VOXEL_SIZE"})
        self.voxel_size = voxel_size_of(cfg)
        self.grid_size = grid_size_of(context.point_cloud_range, self.voxel_size)

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        return sample
