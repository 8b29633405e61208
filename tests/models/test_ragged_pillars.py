"""PillarVFE on valid points only (F5), including the effect of padding on the maximum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_cases import batch, model_config, small_model

from pcdet_freeze.utils.tensors import relative_error


def vfe_of(**options: Any) -> Any:
    """A PillarVFE in eval mode whose norm layers shift features by their own magnitude."""
    config = model_config()
    config["VFE"] |= options
    config["MAP_TO_BEV"]["NUM_BEV_FEATURES"] = config["VFE"]["NUM_FILTERS"][-1]
    vfe = small_model(config).vfe.eval()
    for layer in vfe.pfn_layers:
        if layer.use_norm:
            torch.nn.init.normal_(layer.norm.running_mean, std=2)
            torch.nn.init.normal_(layer.norm.bias)
        else:
            torch.nn.init.normal_(layer.linear.bias)
    return vfe


def features(vfe: Any, pillars: dict[str, Any], frozen: bool) -> torch.Tensor:
    forward = vfe.forward_frozen if frozen else vfe.forward
    return forward(dict(pillars))["pillar_features"]


def frozen_features(vfe: Any, pillars: dict[str, Any]) -> torch.Tensor:
    """The layers on valid points in plain torch: the operators, and so the bits, of the frozen form."""
    filled = torch.arange(pillars["voxels"].shape[1]) < pillars["voxel_num_points"].unsqueeze(1)
    points = vfe._decorate(*(pillars[key] for key in ("voxels", "voxel_num_points", "voxel_coords")))[filled]
    lengths, pillar_of = filled.sum(dim=1), filled.nonzero()[:, 0]
    padding = points.new_zeros(1, points.shape[1])
    for layer in vfe.pfn_layers:
        rows = layer.linear(torch.cat([points, padding]))
        rows = torch.relu(layer.norm(rows) if layer.use_norm else rows)
        points, padding = rows[: len(points)], rows[len(points) :]
        highest = torch.segment_reduce(points, "max", lengths=lengths)
        highest = torch.where(filled.all(dim=1, keepdim=True), highest, torch.maximum(highest, padding))
        points = torch.cat([points, highest[pillar_of]], dim=1)
        padding = torch.cat([padding.expand_as(highest), highest], dim=1)
    return highest


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("filters", [[16], [16, 24], [8, 6, 4]])
def test_f5_the_bits_of_a_frozen_encoder_are_those_of_its_layers_on_rows(
    filters: Any, autocast: bool
) -> None:
    vfe, pillars = vfe_of(NUM_FILTERS=filters), batch((60, 50))
    with torch.autocast("cpu", enabled=autocast):
        assert torch.equal(features(vfe, pillars, True), frozen_features(vfe, pillars))


@torch.no_grad()
@pytest.mark.parametrize("filters", [[8], [8, 6], [8, 6, 4]])
@pytest.mark.parametrize(
    "options", [{}, {"USE_NORM": False}, {"WITH_DISTANCE": True, "USE_ABSLOTE_XYZ": False}]
)
def test_f5_valid_points_alone_give_the_features_of_padded_pillars(filters: Any, options: Any) -> None:
    vfe, pillars = vfe_of(NUM_FILTERS=filters, **options), batch((60, 50))
    assert relative_error(features(vfe, pillars, False), features(vfe, pillars, True)) < 2e-6


@torch.no_grad()
def test_f5_a_padded_row_wins_the_maximum_where_its_bias_is_higher_than_all_points() -> None:
    vfe, pillars = vfe_of(), batch((6,))
    norm = vfe.pfn_layers[0].norm
    norm.weight.zero_()
    norm.weight[0], norm.bias[0], norm.running_mean[0] = 1.0, 3.0, 0.0
    vfe.pfn_layers[0].linear.weight.zero_()
    vfe.pfn_layers[0].linear.weight[:, 0] = -1.0  # minus x, which is above 1
    pillars["voxel_num_points"][:3], pillars["voxel_num_points"][3:] = 4, 2
    pillars["voxels"][:] = pillars["voxels"].abs() + 1
    ragged = features(vfe, pillars, True)
    assert torch.allclose(ragged[3:, 0], torch.tensor(3.0)) and (ragged[:3, 0] < 3).all()
    assert torch.allclose(ragged, features(vfe, pillars, False), atol=1e-6)


@torch.no_grad()
def test_f5_pillars_that_are_full_or_empty_or_not_there() -> None:
    vfe, pillars = vfe_of(NUM_FILTERS=[8, 6]), batch((5,))
    for count in (4, 1, 0):
        pillars["voxel_num_points"][:] = count
        pillars["voxels"][:, count:] = 0
        assert torch.allclose(features(vfe, pillars, True), features(vfe, pillars, False), atol=1e-5)
    assert features(vfe, batch((0,)), True).shape == (0, 6)
