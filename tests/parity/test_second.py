"""SECOND against OpenPCDet's figures, module by module, within the reference's tolerances.

Compared: every figure of forward/kitti_second.json but ``eval_seconds`` and ``train_seconds`` (times of
another machine).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from anchor_golden import AnchorGolden
from pointpillar_golden import assert_summary

EVAL, TRAIN, EXACT = 4e-6, 3e-4, 1e-9


@pytest.fixture(scope="module")
def golden(reference: Path) -> AnchorGolden:
    return AnchorGolden(reference, "kitti_second", "kitti_models__second")


@pytest.fixture(scope="module")
def evaluated(golden: AnchorGolden) -> tuple[Any, dict[str, Any], list[dict[str, Any]], dict[str, float]]:
    model, batch = golden.model().eval(), golden.fresh_batch()
    with torch.no_grad():
        pred_dicts, recall_dict = model(batch)
    return model, batch, pred_dicts, recall_dict


@pytest.fixture(scope="module")
def trained(golden: AnchorGolden) -> tuple[Any, dict[str, Any], torch.Tensor, dict[str, float]]:
    model, batch = golden.model().train(), golden.fresh_batch()
    ret_dict, tb_dict, _ = model(batch)
    ret_dict["loss"].backward()
    return model, batch, ret_dict["loss"].detach(), tb_dict


def assert_stages(golden: AnchorGolden, batch: dict[str, Any], stages: dict[str, Any], within: float) -> None:
    """Voxel features, every sparse level, and both maps."""
    recipe = golden.recipe
    coords, features = recipe.sort_rows(batch["voxel_coords"], batch["voxel_features"])
    assert_summary(recipe, coords, stages["vfe.coords_sorted"], EXACT)
    assert_summary(recipe, features, stages["vfe.voxel_features_sorted"], within)
    levels = {**batch["multi_scale_3d_features"], "encoded_spconv_tensor": batch["encoded_spconv_tensor"]}
    for name, found in levels.items():
        expected = stages[f"backbone_3d.{name}"]
        indices, features = recipe.sort_rows(found.indices, found.features)
        assert list(found.spatial_shape) == expected["spatial_shape"]
        assert_summary(recipe, indices, expected["indices_sorted"], EXACT)
        assert_summary(recipe, features, expected["features_sorted"], within)
    assert_summary(recipe, batch["spatial_features"], stages["map_to_bev.spatial_features"], within)
    assert_summary(recipe, batch["spatial_features_2d"], stages["backbone_2d.spatial_features_2d"], within)


def test_every_stage_in_eval_mode_has_the_numbers_of_openpcdet(golden: AnchorGolden, evaluated: Any) -> None:
    assert_stages(golden, evaluated[1], golden.figures["eval"], EVAL)
    assert evaluated[1]["encoded_spconv_tensor_stride"] == 8
