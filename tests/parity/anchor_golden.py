"""The golden SECOND and multi-head PointPillar: config, data set, weights and batch, from the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict
from pointpillar_golden import Golden, fake_dataset, load_json, load_recipe, padded_boxes

from pcdet_freeze.models import build_network
from pcdet_freeze.ops.voxels import Voxelizer


class AnchorGolden(Golden):
    """The reference model ``forward`` with recipe weights, its two-sample batch, and the figures to meet."""

    def __init__(self, reference: Path, forward: str, config: str) -> None:
        self.recipe = load_recipe(reference)
        self.figures = load_json(reference / "forward" / f"{forward}.json")
        self.config = EasyDict(load_json(reference / "configs" / f"{config}.json"))
        self.columns = 3 + self.figures["points"]["num_extra"]
        self.batch = self._make_batch()

    def dataset(self) -> Any:
        figures = self.figures
        return fake_dataset(
            figures["class_names"], figures["point_cloud_range"], figures["voxel_size"], self.columns
        )

    def model(self) -> Any:
        model = build_network(self.config.MODEL, len(self.figures["class_names"]), self.dataset())
        return self.recipe.load_recipe(model)

    def _voxelizer(self) -> Voxelizer:
        step = next(s for s in self.config.DATA_CONFIG.DATA_PROCESSOR if "VOXEL_SIZE" in s)
        return Voxelizer(
            self.figures["voxel_size"],
            self.figures["point_cloud_range"],
            step["MAX_POINTS_PER_VOXEL"],
            step["MAX_NUMBER_OF_VOXELS"]["test"],
            self.columns,
        )

    def clouds(self) -> list[np.ndarray]:
        """Points of each sample, (N, columns) float32."""
        points, out = self.figures["points"], []
        for seed, boxes in zip(points["seeds"], self.figures["gt_boxes"], strict=True):
            gt = np.array(boxes, dtype=np.float32).astype(np.float64)
            limits = self.figures["point_cloud_range"]
            args = (seed, points["n"], limits, gt[:, :7], points["num_extra"], points["per_box"])
            out.append(self.recipe.clustered_points(*args))
        return out

    def _make_batch(self) -> dict[str, Any]:
        voxelizer = self._voxelizer()
        samples = [voxelizer(cloud) for cloud in self.clouds()]
        coords = [np.pad(s[1], ((0, 0), (1, 0)), constant_values=i) for i, s in enumerate(samples)]
        return {
            "voxels": np.concatenate([s[0] for s in samples]),
            "voxel_coords": np.concatenate(coords),
            "voxel_num_points": np.concatenate([s[2] for s in samples]),
            "gt_boxes": padded_boxes(self.figures["gt_boxes"]),
            "batch_size": len(samples),
        }
