"""The golden PointPillar: config, data set, weights and batch, made from the recipe of the reference."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from easydict import EasyDict

from pcdet_freeze.models import build_network
from pcdet_freeze.ops.voxels import Voxelizer


def load_json(path: Path) -> Any:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def load_recipe(reference: Path) -> ModuleType:
    """The reference's recipe.py as a module."""
    spec = importlib.util.spec_from_file_location("golden_recipe", reference / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_dataset(class_names: list[str], limits: list[float], voxel: list[float], columns: int = 4) -> Any:
    """All that build_network reads of a data set."""
    limit, size = np.array(limits, dtype=np.float32), np.array(voxel, dtype=np.float64)
    return SimpleNamespace(
        class_names=class_names,
        point_feature_encoder=SimpleNamespace(num_point_features=columns),
        point_cloud_range=limit,
        voxel_size=voxel,
        grid_size=np.round((limit[3:6] - limit[:3]) / size).astype(np.int64),
        depth_downsample_factor=None,
    )


def padded_boxes(boxes: list[list[list[float]]]) -> np.ndarray:
    """Ragged boxes -> (B, G, columns) float32 with zero rows as padding."""
    rows, columns = max(len(b) for b in boxes), max((len(r) for b in boxes for r in b), default=8)
    out = np.zeros((len(boxes), rows, columns), dtype=np.float32)
    for padded, sample in zip(out, boxes, strict=True):
        padded[: len(sample)] = np.array(sample, dtype=np.float32).reshape(-1, columns)
    return out


class Golden:
    """One reference model with recipe weights, its two-sample batch, and the figures to meet."""

    def __init__(self, reference: Path) -> None:
        self.recipe = load_recipe(reference)
        self.figures = load_json(reference / "forward" / "kitti_pointpillar.json")
        self.config = EasyDict(load_json(reference / "configs" / "kitti_models__pointpillar.json"))
        self.batch = self._make_batch()

    def dataset(self) -> Any:
        figures = self.figures
        return fake_dataset(figures["class_names"], figures["point_cloud_range"], figures["voxel_size"])

    def model(self) -> Any:
        model = build_network(self.config.MODEL, 3, self.dataset())
        return self.recipe.load_recipe(model)

    def _make_batch(self) -> dict[str, Any]:
        figures, points = self.figures, self.figures["points"]
        limits = figures["point_cloud_range"]
        voxelizer = Voxelizer(figures["voxel_size"], limits, 32, 40000, 4)
        voxels, coords, counts = [], [], []
        for sample, (seed, boxes) in enumerate(zip(points["seeds"], figures["gt_boxes"], strict=True)):
            gt = np.array(boxes, dtype=np.float32).astype(np.float64)
            cloud = self.recipe.clustered_points(
                seed, points["n"], limits, gt[:, :7], points["num_extra"], points["per_box"]
            )
            voxel, coord, count = voxelizer(cloud)
            voxels.append(voxel)
            coords.append(np.pad(coord, ((0, 0), (1, 0)), constant_values=sample))
            counts.append(count)
        return {
            "voxels": np.concatenate(voxels),
            "voxel_coords": np.concatenate(coords),
            "voxel_num_points": np.concatenate(counts),
            "gt_boxes": padded_boxes(figures["gt_boxes"]),
            "batch_size": 2,
        }

    def fresh_batch(self) -> dict[str, Any]:
        """The batch as tensors; nothing of it is shared."""
        return {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in self.batch.items()}


def assert_summary(recipe: ModuleType, actual: Any, expected: dict[str, Any], tolerance: float) -> None:
    """Shape, moments and all samples agree within ``tolerance`` standard deviations."""
    found = recipe.summary(actual)
    assert found["shape"] == expected["shape"]
    allowed = tolerance * max(expected["std"], 1e-12)
    np.testing.assert_allclose(found["samples"], expected["samples"], rtol=0, atol=allowed)
    for moment in ("mean", "std"):
        assert abs(found[moment] - expected[moment]) <= allowed, moment
    count = max(int(np.prod(expected["shape"])), 1)
    for total in ("sum", "abs_sum"):
        assert abs(found[total] - expected[total]) / count <= allowed, total
