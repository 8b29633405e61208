"""DATA_CONFIG.DATA_PROCESSOR: a list of processors, run in the order of the YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.datasets.processor import points as _points
from pcdet_freeze.datasets.processor import voxels as _voxels
from pcdet_freeze.datasets.processor.context import ProcessorContext
from pcdet_freeze.datasets.processor.voxels import PointsToVoxels
from pcdet_freeze.datasets.registry import PROCESSORS, Config, Sample, read_steps
from pcdet_freeze.ops.voxels import Voxelizer
from pcdet_freeze.utils.settings.faults import raise_faults

__all__ = ["DataProcessor", "ProcessorContext", "_points", "_voxels", "read_processors"]


def read_processors(configs: object) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Read DATA_CONFIG.DATA_PROCESSOR: ((NAME, class, settings) of each, every fault)."""
    return read_steps(PROCESSORS, () if configs is None else configs, "DATA_CONFIG.DATA_PROCESSOR")


class DataProcessor:
    """Runs the configured processors on a sample.

    ``grid_size`` (int64 x, y, z cells) and ``voxel_size`` (3 floats, metres) come from the voxel step;
    both are None where no processor makes voxels.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        point_cloud_range: np.ndarray,
        training: bool,
        num_point_features: int,
    ) -> None:
        context = ProcessorContext(point_cloud_range, training, num_point_features)
        self.grid_size: np.ndarray | None = None
        self.voxel_size: list[float] | None = None
        self.steps = []
        self.random_steps: list[str] = []
        """names of the steps that draw random numbers"""
        steps, faults = read_processors(configs)
        raise_faults(faults)
        for name, build, settings in steps:
            step = build(settings, context)
            self.grid_size = getattr(step, "grid_size", self.grid_size)
            self.voxel_size = getattr(step, "voxel_size", self.voxel_size)
            self.steps.append(step)
            self.random_steps += [name] if getattr(step, "random", True) else []

    def put_off_voxels(self) -> Voxelizer | None:
        """Leave voxels out from now on, and return what makes them; None where that is not the last step."""
        last = self.steps[-1] if self.steps else None
        if not isinstance(last, PointsToVoxels):
            return None
        last.later = True
        return last.voxelizer

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        """The sample after all steps; ``rng`` serves the random ones."""
        for step in self.steps:
            sample = step(sample, rng)
        return sample
