"""PillarVFE, PointPillarScatter and BaseBEVBackbone in isolation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from model_cases import batch, model_config, small_model

from pcdet_freeze.errors import ConfigError


def buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def encoded(model: Any, pillars: dict[str, Any]) -> torch.Tensor:
    return model.vfe(dict(pillars))["pillar_features"]


def test_a_pillar_does_not_depend_on_the_order_of_its_points_or_on_other_pillars() -> None:
    model, pillars = small_model().eval(), batch((3,))
    pillars["voxel_num_points"][:] = 4
    features = encoded(model, pillars)
    turned = dict(pillars, voxels=pillars["voxels"].flip(1))
    torch.testing.assert_close(encoded(model, turned), features)
    one = {key: pillars[key][:1] for key in ("voxels", "voxel_coords", "voxel_num_points")}
    torch.testing.assert_close(encoded(model, one), features[:1])


def test_values_in_padding_slots_have_no_effect() -> None:
    model, pillars = small_model().eval(), batch((5,))
    pillars["voxel_num_points"][:] = 1
    pillars["voxels"][:, 1:] = 0
    features = encoded(model, pillars)
    assert torch.isfinite(features).all()
    assert features.shape == (5, 8)


def test_exactly_one_pillar_keeps_its_shape() -> None:
    model = small_model()
    for training in (True, False):
        assert encoded(model.train(training), batch((1,))).shape == (1, 8)


@pytest.mark.parametrize("points", [0, 1])
def test_too_few_points_for_a_variance_leave_the_running_statistics_alone(points: int) -> None:
    vfe = small_model().train().vfe
    few = batch((points,))
    few["voxels"], few["voxel_num_points"] = few["voxels"][:, :1], few["voxel_num_points"].clamp(max=1)
    before = buffers(vfe)
    features = vfe(few)["pillar_features"]
    assert features.shape == (points, 8)
    features.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vfe.parameters())
    assert all(value.equal(before[name]) for name, value in vfe.named_buffers())


def test_several_layers_distance_and_relative_coordinates_can_be_chosen() -> None:
    config = model_config()
    config["VFE"].update(NUM_FILTERS=[16, 8], WITH_DISTANCE=True, USE_ABSLOTE_XYZ=False, USE_NORM=False)
    vfe = small_model(config).vfe
    shapes = {name: tuple(p.shape) for name, p in vfe.named_parameters()}
    assert shapes == {
        "pfn_layers.0.linear.weight": (8, 8),
        "pfn_layers.0.linear.bias": (8,),
        "pfn_layers.1.linear.weight": (8, 16),
        "pfn_layers.1.linear.bias": (8,),
    }
    assert vfe(batch((7, 2)))["pillar_features"].shape == (9, 8)


def test_scatter_puts_every_pillar_into_its_cell_and_zero_elsewhere() -> None:
    scatter, pillars = small_model().map_to_bev_module, batch((6, 5))
    pillars["pillar_features"] = features = torch.randn(11, 8)
    canvas = scatter(pillars)["spatial_features"]
    assert canvas.shape == (2, 8, 32, 32)
    sample, _, y, x = pillars["voxel_coords"].long().unbind(1)
    assert canvas[sample, :, y, x].equal(features)
    assert canvas.abs().sum() == pytest.approx(features.abs().sum().item(), rel=1e-5)


def test_scatter_keeps_an_empty_last_sample() -> None:
    scatter, pillars = small_model().map_to_bev_module, batch((6, 0))
    pillars["pillar_features"] = torch.randn(6, 8)
    canvas = scatter(pillars)["spatial_features"]
    assert len(canvas) == 2
    assert not canvas[1].any()


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({}, (2, 16, 16, 16)),
        ({"UPSAMPLE_STRIDES": [0.5, 1]}, (2, 16, 8, 8)),
        ({"UPSAMPLE_STRIDES": [1, 2, 2]}, (2, 16, 32, 32)),
        ({"UPSAMPLE_STRIDES": [1, 2], "USE_CONV_FOR_NO_STRIDE": True}, (2, 16, 16, 16)),
    ],
)
def test_the_backbone_output_has_the_declared_size(change: dict[str, Any], shape: tuple[int, ...]) -> None:
    config = model_config()
    config["BACKBONE_2D"].update(change)
    stride = 32 // shape[-1]
    for section in config["DENSE_HEAD"]["ANCHOR_GENERATOR_CONFIG"]:
        section["feature_map_stride"] = stride
    backbone = small_model(config).backbone_2d
    given = {"spatial_features": torch.randn(2, 8, 32, 32)}
    assert backbone(given)["spatial_features_2d"].shape == shape


def test_an_upsample_stride_that_is_not_an_integer_is_an_error() -> None:
    config = model_config()
    config["BACKBONE_2D"]["UPSAMPLE_STRIDES"] = [1.5, 2]
    with pytest.raises(ConfigError, match="integers or their reciprocals"):
        small_model(config)


def test_layers_survive_copying() -> None:
    model = small_model().eval()
    twin = copy.deepcopy(model)
    assert encoded(twin, batch()).equal(encoded(model, batch()))
