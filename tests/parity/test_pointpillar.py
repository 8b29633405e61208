"""Parity of PointPillar with OpenPCDet, module by module, within the tolerances of the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pointpillar_golden import Golden, assert_summary

BEFORE_NMS, AFTER_NMS, TRAIN = 4e-6, 1e-4, 1e-5


@pytest.fixture(scope="module")
def golden(reference: Path) -> Golden:
    return Golden(reference)


@pytest.fixture(scope="module")
def evaluated(golden: Golden) -> tuple[Any, dict[str, Any], list[dict[str, Any]], dict[str, float]]:
    model, batch = golden.model().eval(), golden.fresh_batch()
    with torch.no_grad():
        pred_dicts, recall_dict = model(batch)
    return model, batch, pred_dicts, recall_dict


@pytest.fixture(scope="module")
def trained(golden: Golden) -> tuple[Any, dict[str, Any], torch.Tensor, dict[str, float]]:
    model, batch = golden.model().train(), golden.fresh_batch()
    ret_dict, tb_dict, _ = model(batch)
    ret_dict["loss"].backward()
    return model, batch, ret_dict["loss"].detach(), tb_dict


def test_golden_batch_equals_the_reference(golden: Golden) -> None:
    figures, batch, recipe = golden.figures["input"], golden.batch, golden.recipe
    coords, voxels, counts = recipe.sort_rows(
        batch["voxel_coords"], batch["voxels"], batch["voxel_num_points"]
    )
    for found, name in [(coords, "coords"), (voxels, "voxels"), (counts, "num_points")]:
        assert_summary(recipe, found, figures[f"{name}_sorted"], 1e-9)
    assert_summary(recipe, batch["gt_boxes"], figures["gt_boxes_padded"], 1e-9)


def test_every_stage_in_eval_mode_equals_openpcdet(golden: Golden, evaluated: Any) -> None:
    model, batch, _, _ = evaluated
    figures, recipe = golden.figures["eval"], golden.recipe
    pillars = recipe.sort_rows(batch["voxel_coords"], batch["pillar_features"])[1]
    head = model.dense_head
    found = {
        "vfe.pillar_features_sorted": pillars,
        "map_to_bev.spatial_features": batch["spatial_features"],
        "backbone_2d.spatial_features_2d": batch["spatial_features_2d"],
        "decoded.batch_cls_preds": batch["batch_cls_preds"],
        **{f"dense_head.{key}": head.forward_ret_dict[key] for key in head.forward_ret_dict},
    }
    assert sorted(head.forward_ret_dict) == figures["dense_head.forward_ret_dict_keys"]
    for key, value in found.items():
        assert_summary(recipe, value, figures[key], BEFORE_NMS)
    assert_summary(recipe, batch["batch_box_preds"], figures["decoded.batch_box_preds"], 1e-5)
    for anchors, expected in zip(head.anchors, figures["anchors"], strict=True):
        assert_summary(recipe, anchors, expected, 1e-9)


def test_detections_equal_openpcdet(golden: Golden, evaluated: Any) -> None:
    _, _, pred_dicts, recall_dict = evaluated
    figures = golden.figures["eval"]
    for found, expected in zip(pred_dicts, figures["post_processing"], strict=True):
        assert_summary(golden.recipe, found["pred_scores"], expected["pred_scores"], AFTER_NMS)
        assert found["pred_labels"].sum() == expected["pred_labels"]["sum"]
        scores = found["pred_scores"].numpy()
        for key in ("pred_boxes", "pred_labels"):
            assert_rows_agree(golden, found[key].reshape(len(scores), -1).numpy(), scores, expected[key])
    assert recall_dict == figures["recall_dict"]


def assert_rows_agree(golden: Golden, rows: np.ndarray, scores: np.ndarray, expected: dict[str, Any]) -> None:
    """Each golden sample equals its row, or another row of (nearly) equal score."""
    allowed = 1e-4 * expected["std"]
    assert expected["shape"][0] == len(rows)
    for flat, value in zip(golden.recipe.sample_indices(rows.size), expected["samples"], strict=True):
        row, column = divmod(flat, rows.shape[1])
        equals = rows[np.abs(scores - scores[row]) < 1e-6, column]
        assert np.abs(equals - value).min() <= allowed


def test_training_loss_and_its_parts_equal_openpcdet(golden: Golden, trained: Any) -> None:
    figures, (_, _, loss, tb_dict) = golden.figures["train"], trained
    assert loss.item() == pytest.approx(figures["loss"], rel=1e-6)
    assert list(tb_dict) == list(figures["tb_dict"])
    assert tb_dict == pytest.approx(figures["tb_dict"], rel=1e-5)


def test_every_stage_in_train_mode_equals_openpcdet(golden: Golden, trained: Any) -> None:
    model, batch, _, _ = trained
    figures, recipe = golden.figures["train"], golden.recipe
    pillars = recipe.sort_rows(batch["voxel_coords"], batch["pillar_features"])[1]
    stages = figures["stages"]
    assert_summary(recipe, pillars, stages["vfe.pillar_features_sorted"], TRAIN)
    assert_summary(recipe, batch["spatial_features"], stages["map_to_bev.spatial_features"], TRAIN)
    assert_summary(recipe, batch["spatial_features_2d"], stages["backbone_2d.spatial_features_2d"], TRAIN)
    for key in ("cls_preds", "box_preds", "dir_cls_preds"):
        expected = figures[f"dense_head.{key}"]
        assert_summary(recipe, model.dense_head.forward_ret_dict[key], expected, TRAIN)


def test_targets_equal_openpcdet(golden: Golden, trained: Any) -> None:
    model, batch, _, _ = trained
    figures, found = golden.figures["train"]["targets"], model.dense_head.forward_ret_dict
    for key in ("box_cls_labels", "box_reg_targets", "reg_weights"):
        assert_summary(golden.recipe, found[key], figures[key], 1e-6)
    labels = found["box_cls_labels"]
    assert str(labels.dtype) == "torch." + figures["box_cls_labels"]["dtype"]
    assert [(sample > 0).nonzero()[:, 0].tolist() for sample in labels] == figures["pos_flat_indices"]
    assert (labels == 0).sum(dim=1).tolist() == figures["num_neg"]
    assert (labels == -1).sum(dim=1).tolist() == figures["num_ignore"]
    for label, name in enumerate(golden.figures["class_names"], start=1):
        assert (labels == label).sum(dim=1).tolist() == figures["num_pos_per_class"][name]
    assert batch["gt_boxes"].equal(torch.from_numpy(golden.batch["gt_boxes"]))


def test_norm_and_sum_of_every_gradient_equal_openpcdet(golden: Golden, trained: Any) -> None:
    figures, (model, _, _, _) = golden.figures["train"], trained
    gradients = {name: p.grad.double() for name, p in model.named_parameters()}
    assert list(gradients) == list(figures["grad_norms"])
    for name, gradient in gradients.items():
        norm = figures["grad_norms"][name]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3)
        noise = 1e-4 * norm * gradient.numel() ** 0.5
        assert gradient.sum().item() == pytest.approx(figures["grad_sums"][name], abs=noise)
    total = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert total == pytest.approx(figures["total_grad_norm"], rel=1e-4)


def test_running_statistics_equal_openpcdet_after_one_forward(golden: Golden, trained: Any) -> None:
    state = trained[0].state_dict()
    expected = golden.figures["train"]["running_after"]
    assert [key for key in state if "running_" in key] == list(expected)
    for key, (total, abs_total) in expected.items():
        value = state[key].double()
        assert value.sum().item() == pytest.approx(total, abs=1e-5 * abs_total)
        assert value.abs().sum().item() == pytest.approx(abs_total, rel=1e-5)
    assert all(state[key] == 1 for key in state if key.endswith("num_batches_tracked"))
