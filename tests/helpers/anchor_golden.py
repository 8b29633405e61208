"""The golden SECOND and multi-head PointPillar: config, data set, weights and batch, from the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from pointpillar_golden import Golden, assert_summary, fake_dataset, load_json, load_recipe, padded_boxes

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

    def evaluate(self) -> tuple[Any, dict[str, Any], list[dict[str, Any]], dict[str, float]]:
        """A forward in eval mode: model, batch, pred_dicts, recall_dict."""
        model, batch = self.model().eval(), self.fresh_batch()
        with torch.no_grad():
            pred_dicts, recall_dict = model(batch)
        return model, batch, pred_dicts, recall_dict

    def train(self) -> tuple[Any, dict[str, Any], torch.Tensor, dict[str, float]]:
        """A forward and backward in train mode: model, batch, loss, tb_dict."""
        model, batch = self.model().train(), self.fresh_batch()
        ret_dict, tb_dict, _ = model(batch)
        ret_dict["loss"].backward()
        return model, batch, ret_dict["loss"].detach(), tb_dict

    def assert_batch(self) -> None:
        """Points, voxels and boxes are those of the reference."""
        figures, batch, recipe = self.figures["input"], self.batch, self.recipe
        for sample, cloud in enumerate(self.clouds()):
            assert_summary(recipe, cloud, figures[f"points_{sample}"], 1e-9)
        rows = batch["voxel_coords"], batch["voxels"], batch["voxel_num_points"]
        for found, name in zip(recipe.sort_rows(*rows), ("coords", "voxels", "num_points"), strict=True):
            assert_summary(recipe, found, figures[f"{name}_sorted"], 1e-9)
        assert np.bincount(rows[0][:, 0]).tolist() == figures["num_voxels"]
        assert_summary(recipe, batch["gt_boxes"], figures["gt_boxes_padded"], 1e-9)
        assert self.dataset().grid_size.tolist() == self.figures["grid_size"]

    def assert_targets(self, found: dict[str, Any]) -> None:
        """Labels, residuals, weights, and which anchors are positive."""
        figures = self.figures["train"]["targets"]
        for key in ("box_cls_labels", "box_reg_targets", "reg_weights"):
            assert_summary(self.recipe, found[key], figures[key], 1e-6)
        labels = found["box_cls_labels"]
        assert [(sample > 0).nonzero()[:, 0].tolist() for sample in labels] == figures["pos_flat_indices"]
        assert (labels == 0).sum(dim=1).tolist() == figures["num_neg"]
        assert (labels == -1).sum(dim=1).tolist() == figures["num_ignore"]
        for label, name in enumerate(self.figures["class_names"], start=1):
            assert (labels == label).sum(dim=1).tolist() == figures["num_pos_per_class"][name]

    def assert_gradients(self, model: Any, within: float) -> None:
        """Norm and sum of every gradient, those of rounding noise (norm below 1e-2) apart."""
        figures = self.figures["train"]
        gradients = {name: p.grad.double() for name, p in model.named_parameters()}
        assert list(gradients) == list(figures["grad_norms"]) == list(figures["grad_sums"])
        for name, gradient in gradients.items():
            norm = figures["grad_norms"][name]
            if norm > 1e-2:
                assert gradient.norm().item() == pytest.approx(norm, rel=within), name
                noise = within * norm * gradient.numel() ** 0.5
                assert gradient.sum().item() == pytest.approx(figures["grad_sums"][name], abs=noise), name
        total = torch.stack([g.norm() for g in gradients.values()]).norm().item()
        assert total == pytest.approx(figures["total_grad_norm"], rel=1e-3)

    def assert_running_statistics(self, model: Any, within: float) -> None:
        """Running statistics after one forward in train mode."""
        state, expected = model.state_dict(), self.figures["train"]["running_after"]
        assert [key for key in state if "running_" in key] == list(expected)
        for key, (total, abs_total) in expected.items():
            value = state[key].double()
            assert value.sum().item() == pytest.approx(total, abs=within * abs_total), key
            assert value.abs().sum().item() == pytest.approx(abs_total, rel=within), key


def assert_rows_agree(
    golden: Any, rows: torch.Tensor, scores: torch.Tensor, expected: dict[str, Any]
) -> None:
    """Each golden sample stands in its row, or in another row of (nearly) equal score."""
    table = rows.reshape(len(rows), -1)
    assert list(rows.shape) == expected["shape"]
    allowed = max(1e-4 * expected["std"], 5e-7)
    for flat, value in zip(golden.recipe.sample_indices(rows.numel()), expected["samples"], strict=True):
        row, column = divmod(flat, table.shape[1])
        equals = table[(scores - scores[row]).abs() < 1e-6, column]
        assert (equals - value).abs().min() <= allowed
    assert rows.double().sum().item() == pytest.approx(expected["sum"], abs=allowed * rows.numel())
