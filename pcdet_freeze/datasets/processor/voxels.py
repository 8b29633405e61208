"""Processors that divide the range into voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from pcdet_freeze.datasets.processor.context import ProcessorContext
from pcdet_freeze.datasets.registry import PROCESSORS, Sample
from pcdet_freeze.datasets.settings import Modes
from pcdet_freeze.ops.voxels import Voxelizer
from pcdet_freeze.utils.settings.rules import Count, Length, length
from pcdet_freeze.utils.settings.sections import Section

VoxelSize = Annotated[tuple[Length, ...], length(3, "three numbers above 0 [x, y, z], in metres")]


def grid_size_of(limits: np.ndarray, voxel_size: list[float]) -> np.ndarray:
    """Cells (x, y, z) int64 of the range ``limits`` (6,), rounded to the nearest whole number."""
    extent = limits[3:].astype(np.float64) - limits[:3].astype(np.float64)
    return np.round(extent / np.array(voxel_size)).astype(np.int64)


@dataclass(frozen=True)
class VoxelSettings(Section):
    """Keys of transform_points_to_voxels."""

    not_built: ClassVar[tuple[str, ...]] = ("DOUBLE_FLIP",)

    voxel_size: VoxelSize
    max_points_per_voxel: Count
    max_number_of_voxels: Modes[Count]


@PROCESSORS.register_as("transform_points_to_voxels")
class PointsToVoxels:
    """Adds voxels (M, P, C), voxel_coords (M, 3) zyx and voxel_num_points (M,); the points stay.

    While ``later`` is set, the voxels are made elsewhere with the same ``voxelizer``.
    """

    Settings = VoxelSettings
    random = False

    def __init__(self, settings: VoxelSettings, context: ProcessorContext) -> None:
        self.later = False
        self.voxel_size = list(settings.voxel_size)
        self.grid_size = grid_size_of(context.point_cloud_range, self.voxel_size)
        self.voxelizer = Voxelizer(
            self.voxel_size,
            context.point_cloud_range,
            settings.max_points_per_voxel,
            settings.max_number_of_voxels.of(context.training),
            context.num_point_features,
        )

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        if self.later:
            return sample
        voxels, coords, counts = self.voxelizer(sample["points"])
        sample.update(voxels=voxels, voxel_coords=coords, voxel_num_points=counts)
        return sample


@dataclass(frozen=True)
class GridSettings(Section):
    """Keys of transform_points_to_voxels_placeholder."""

    voxel_size: VoxelSize


@PROCESSORS.register_as("transform_points_to_voxels_placeholder")
class PointsToVoxelsPlaceholder:
    """Only says how large the grid is; the model makes its voxels itself."""

    Settings = GridSettings
    random = False

    def __init__(self, settings: GridSettings, context: ProcessorContext) -> None:
        self.voxel_size = list(settings.voxel_size)
        self.grid_size = grid_size_of(context.point_cloud_range, self.voxel_size)

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        return sample
