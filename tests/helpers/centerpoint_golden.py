"""The golden CenterPoints: models with recipe weights, their batches, synthetic predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from pointpillar_golden import fake_dataset, load_json, load_recipe, padded_boxes

from pcdet_freeze.models import build_network
from pcdet_freeze.ops.voxels import Voxelizer

# recipe of the synthetic predictions: scale and shift of randn, a branch each
SPREAD = {
    "center": (0.3, 0.5),
    "center_z": (0.5, -0.5),
    "dim": (0.3, 0.5),
    "rot": (0.7, 0.0),
    "vel": (1.0, 0.0),
    "hm": (1.2, -3.0),
}


class CenterGolden:
    """One reference CenterPoint of pillars, its two-sample batch, and the figures to meet."""

    def __init__(self, reference: Path, name: str) -> None:
        self.recipe = load_recipe(reference)
        self.figures = load_json(reference / "forward" / f"{name}.json")
        folder, model = name.split("_", 1)
        self.config = EasyDict(load_json(reference / "configs" / f"{folder}_models__{model}.json"))
        self.class_names = self.figures["class_names"]
        self.batch = self._make_batch()

    def model(self) -> Any:
        figures = self.figures
        dataset = fake_dataset(self.class_names, figures["point_cloud_range"], figures["voxel_size"], 5)
        return self.recipe.load_recipe(build_network(self.config.MODEL, len(self.class_names), dataset))

    def clouds(self) -> list[np.ndarray]:
        """The points of each sample, (N, 5) float32."""
        points, boxes = self.figures["points"], self.figures["gt_boxes"]
        return [
            self.recipe.clustered_points(
                seed,
                points["n"],
                self.figures["point_cloud_range"],
                np.array(gt, dtype=np.float32).astype(np.float64)[:, :7],
                points["num_extra"],
                points["per_box"],
            )
            for seed, gt in zip(points["seeds"], boxes, strict=True)
        ]

    def _make_batch(self) -> dict[str, Any]:
        columns = {"points": with_sample(self.clouds())}
        steps = {step["NAME"]: step for step in self.config.DATA_CONFIG.DATA_PROCESSOR}
        voxels = steps.get("transform_points_to_voxels")
        if voxels is not None:
            limits = self.figures["point_cloud_range"]
            per_voxel, most = voxels["MAX_POINTS_PER_VOXEL"], voxels["MAX_NUMBER_OF_VOXELS"]["test"]
            voxelizer = Voxelizer(self.figures["voxel_size"], limits, per_voxel, most, 5)
            found = [voxelizer(cloud) for cloud in self.clouds()]
            columns["voxels"] = np.concatenate([voxel for voxel, _, _ in found])
            columns["voxel_coords"] = with_sample([coords for _, coords, _ in found])
            columns["voxel_num_points"] = np.concatenate([count for _, _, count in found])
        return {**columns, "gt_boxes": padded_boxes(self.figures["gt_boxes"]), "batch_size": 2}

    def fresh_batch(self) -> dict[str, Any]:
        """The batch as tensors; nothing of it is shared."""
        return {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in self.batch.items()}


def with_sample(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of all samples, the sample's number in front."""
    numbered = [np.pad(p, ((0, 0), (1, 0)), constant_values=i) for i, p in enumerate(parts)]
    return np.concatenate(numbered)


def synthetic_predictions(head: Any, cells: int = 64) -> list[dict[str, torch.Tensor]]:
    """Raw outputs of two samples, a dict a head; the seed counts up over heads and their branches."""
    seed, heads = 3000, []
    branches = head.settings.separate_head_cfg
    for classes in head.classes:
        maps = {}
        for name in (*branches.head_order, "hm"):
            columns = len(classes) if name == "hm" else branches.head_dict[name].out_channels
            scale, shift = SPREAD[name]
            values = np.random.RandomState(seed).randn(2, columns, cells, cells) * scale + shift
            maps[name] = torch.from_numpy(values).float().requires_grad_()
            seed += 1
        heads.append(maps)
    return heads
