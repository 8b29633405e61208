"""Voxelize on the device: workers send points only, and the host waits once a batch.

A frame of KITTI has 0.4 MB of points and 8 MB of padded voxels: sending those costs more than computing them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.ops.batch_tensors import as_tensors
from pcdet_freeze.ops.batch_voxels import voxelize_batch
from pcdet_freeze.ops.voxels import Voxelizer
from pcdet_freeze.utils.devices import is_accelerator


class LateVoxels:
    """Adds voxels to a batch of tensors, bit-identical to those of the data set.

    Args:
        voxelizer: the one of the data set's processor.
    """

    def __init__(self, voxelizer: Voxelizer) -> None:
        self.voxelizer = voxelizer

    def __call__(self, batch_dict: dict[str, Any]) -> None:
        """Read points (N, 1 + C); add voxels, voxel_coords and voxel_num_points unless present."""
        if "voxels" in batch_dict:
            return
        points, samples = batch_dict["points"], int(batch_dict["batch_size"])
        if is_accelerator(points):
            found: tuple[Tensor, ...] = voxelize_batch(self.voxelizer, points, samples)
        else:
            clouds = _clouds(points.numpy(), samples)
            found = tuple(map(torch.from_numpy, self.voxelizer.together(clouds)))
        batch_dict.update(zip(("voxels", "voxel_coords", "voxel_num_points"), found, strict=True))


def _clouds(points: np.ndarray, samples: int) -> list[np.ndarray]:
    """Points (N, 1 + C) of each sample, (n, C); views where one sample follows the other, as collated."""
    column = points[:, 0]
    if (column[1:] >= column[:-1]).all():
        ends = np.searchsorted(column, np.arange(samples + 1))
        return [points[begin:end, 1:] for begin, end in itertools.pairwise(ends)]
    return [points[column == sample, 1:] for sample in range(samples)]


class TensorBatches:
    """Collates samples into tensors, which leave a worker without being copied."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return as_tensors(self.collate(samples))


def send_points(loader: DataLoader) -> LateVoxels | None:
    """Let the workers of ``loader`` send tensors without voxels; the returned object computes those.

    Returns None if voxelization is not the last step of the data set's processor: then voxels are sent.
    """
    loader.collate_fn = TensorBatches(loader.collate_fn)
    voxelizer = loader.dataset.data_processor.put_off_voxels()  # type: ignore[attr-defined]
    return None if voxelizer is None else LateVoxels(voxelizer)
