"""DynPillarVFE and BaseBEVResBackbone in isolation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from center_cases import center_batch, center_config, center_model


def encoded(model: Any, points: torch.Tensor) -> dict[str, torch.Tensor]:
    found = model.vfe({"points": points})
    return {key: found[key] for key in model.vfe.writes}


def test_pillars_are_the_cells_that_hold_points_in_order() -> None:
    given = center_batch()
    found = encoded(center_model().eval(), given["points"])
    wanted = sorted(given["voxel_coords"].tolist())
    assert found["voxel_coords"].dtype == torch.int32
    assert found["voxel_coords"].tolist() == wanted
    assert found["pillar_features"].shape == (len(wanted), 8)


def test_features_do_not_depend_on_the_order_of_the_points() -> None:
    model, points = center_model().eval(), center_batch()["points"]
    mixed = points[torch.randperm(len(points))]
    torch.testing.assert_close(encoded(model, mixed), encoded(model, points))


def test_features_equal_those_of_padded_pillars_without_a_point_limit() -> None:
    given, dynamic = center_batch(), center_model().eval()
    fixed = center_model(center_config("PillarVFE")).eval()
    fixed.vfe.load_state_dict(dynamic.vfe.state_dict())
    order = torch.tensor(
        sorted(range(len(given["voxel_coords"])), key=given["voxel_coords"].tolist().__getitem__)
    )
    wanted = fixed.vfe(dict(given))["pillar_features"][order]
    # in full pillars both see the same; elsewhere PillarVFE also sees padding, so only these are compared
    full = given["voxel_num_points"][order] == given["voxels"].shape[1]
    found = encoded(dynamic, given["points"])["pillar_features"]
    torch.testing.assert_close(found[full], wanted[full])


def test_points_outside_the_range_or_not_finite_are_left_out_at_any_height() -> None:
    model, points = center_model().eval(), center_batch()["points"]
    odd = points[:4].clone()
    odd[0, 1], odd[1, 2], odd[2, 1], odd[3, 1] = -0.1, 8.1, float("nan"), float("inf")
    torch.testing.assert_close(encoded(model, torch.cat([odd, points])), encoded(model, points))
    high = points[:1].clone()
    high[0, 3] = 50.0
    assert len(encoded(model, high)["pillar_features"]) == 1


@pytest.mark.parametrize("points", [0, 1])
def test_too_few_points_for_a_variance_leave_the_running_statistics_alone(points: int) -> None:
    vfe = center_model().train().vfe
    before = {name: value.clone() for name, value in vfe.named_buffers()}
    features = vfe({"points": center_batch()["points"][:points]})["pillar_features"]
    assert features.shape == (points, 8)
    features.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vfe.parameters())
    assert all(value.equal(before[name]) for name, value in vfe.named_buffers())


def test_distance_and_relative_coordinates_can_be_chosen() -> None:
    config = center_config()
    config["VFE"].update(WITH_DISTANCE=True, USE_ABSLOTE_XYZ=False, USE_NORM=False)
    vfe = center_model(config).vfe
    assert {name: tuple(p.shape) for name, p in vfe.named_parameters()} == {
        "pfn_layers.0.linear.weight": (4, 8),
        "pfn_layers.0.linear.bias": (4,),
        "pfn_layers.1.linear.weight": (8, 8),
        "pfn_layers.1.linear.bias": (8,),
    }
    assert vfe({"points": center_batch()["points"]})["pillar_features"].shape[1] == 8


def test_the_residual_backbone_trains_in_the_place_of_the_plain_one() -> None:
    config = center_config()
    config["BACKBONE_2D"]["NAME"] = "BaseBEVResBackbone"
    model = center_model(config).train()
    model(center_batch())[0]["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    given = {"spatial_features": torch.randn(2, 8, 32, 32)}
    assert model.backbone_2d(given)["spatial_features_2d"].shape == (2, 16, 16, 16)
