"""The models of cfgs/, whole, on a range cut to a few voxels, with random frames: for tests that run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets.random_frames import RandomFrames
from pcdet_freeze.models import build_network, load_data_to_gpu

CELLS = 64
"""voxels along x and y"""


class FewPoints(RandomFrames):
    points = 1500


class CutModel:
    """A config, its data set and its model.

    Args:
        root: the project's folder.
        name: of a YAML in cfgs/.
        changes: keys of MODEL to set.
    """

    def __init__(self, root: Path, name: str, **changes: Any) -> None:
        self.cfg = cfg_from_yaml_file(root / "cfgs" / f"{name}.yaml")
        self.cfg.MODEL.update(changes)
        data = self.cfg.DATA_CONFIG
        reach = CELLS / 2 * data.DATA_PROCESSOR[-1].VOXEL_SIZE[0]
        low, high = data.POINT_CLOUD_RANGE[2::3]
        data.POINT_CLOUD_RANGE = [-reach, -reach, low, reach, reach, high]
        torch.manual_seed(0)
        self.frames = FewPoints(data, self.cfg.CLASS_NAMES, training=False)
        self.model: Any = build_network(self.cfg.MODEL, len(self.cfg.CLASS_NAMES), self.frames)

    def arrays(self) -> dict[str, Any]:
        """A fresh batch of two frames, as the loader gives it."""
        return self.frames.collate_batch([self.frames[i] for i in range(2)])

    def batch(self) -> dict[str, Any]:
        """The same as tensors."""
        arrays = self.arrays()
        load_data_to_gpu(arrays, "cpu")
        return arrays


class Batches:
    """A loader that gives the batch of ``cut`` anew, ``steps`` times."""

    def __init__(self, cut: CutModel, steps: int) -> None:
        self.cut, self.steps = cut, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.cut.arrays() for _ in range(self.steps))
