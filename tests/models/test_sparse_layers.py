"""MeanVFE, DynamicMeanVFE, the sparse backbones and HeightCompression in isolation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from second_cases import BACKBONES, second_batch, second_config, second_model
from torch.nn import functional as F

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.ops import sparse


def sorted_rows(given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    coords = given["voxel_coords"].numpy()
    order = np.lexsort(coords.T[::-1])
    return coords[order], given["voxel_features"].numpy()[order]


def test_a_voxel_is_the_mean_of_its_points() -> None:
    model, given = second_model(), second_batch()
    features = model.vfe(given)["voxel_features"]
    for voxel, count, mean in zip(given["voxels"], given["voxel_num_points"], features, strict=True):
        torch.testing.assert_close(mean, voxel[:count].mean(dim=0))


def test_a_voxel_without_points_is_zero_and_not_nan() -> None:
    given = second_batch((1,))
    given["voxels"].zero_()
    given["voxel_num_points"].zero_()
    assert not second_model().vfe(given)["voxel_features"].any()


def test_means_straight_from_points_are_those_of_uncapped_voxels() -> None:
    padded = second_model().vfe(second_batch())
    given = {key: value for key, value in second_batch().items() if not key.startswith("voxel")}
    dynamic = second_model(second_config(vfe="DynamicMeanVFE")).vfe(given)
    for found, expected in zip(sorted_rows(dynamic), sorted_rows(padded), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_dynamic_means_ignore_points_outside_the_range_and_nan() -> None:
    vfe = second_model(second_config(vfe="DynamicMeanVFE")).vfe
    inside = [0.0, 1.0, 1.0, -1.0, 0.5]
    rows = [inside, [0, 99.0, 1, -1, 0], [0, 1, 1, 5.0, 0], [0, 1, 1, float("nan"), 0]]
    found = vfe({"points": torch.tensor(rows), "batch_size": 1})
    assert found["voxel_coords"].tolist() == [[0, 20, 18, 2]]
    assert found["voxel_features"].tolist() == [inside[1:]]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("training", [True, False])
def test_a_sample_without_points_keeps_its_place_in_the_batch(backbone: str, training: bool) -> None:
    model = second_model(second_config(backbone)).train(training)
    for voxels in ((0, 40), (40, 0), (0, 0)):
        given = second_batch(voxels)
        for module in (model.vfe, model.backbone_3d, model.map_to_bev_module):
            given = module(given)
        maps = given["spatial_features"]
        assert maps.shape == (2, 256, 4, 4)
        assert torch.isfinite(maps).all()
        assert [bool(m.any()) for m in maps] == [count > 0 for count in voxels]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_order_of_voxels_does_not_matter(backbone: str) -> None:
    model, given = second_model(second_config(backbone)).eval(), second_batch()
    order = torch.randperm(len(given["voxels"]), generator=torch.Generator().manual_seed(0))
    mixed = {key: value[order] if key.startswith("voxel") else value for key, value in given.items()}
    with torch.no_grad():
        model(given)
        model(mixed)
    torch.testing.assert_close(mixed["spatial_features"], given["spatial_features"])


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_block_is_the_dense_one_on_its_active_sites(training: bool) -> None:
    model, given = second_model(second_config("VoxelResBackBone8x")), second_batch()
    block = model.backbone_3d.conv1[0]
    with torch.no_grad():
        x = model.backbone_3d.eval().conv_input(sparse_input(model, given))
        block.train(training)
        places = x.indices.long()[:, 0], slice(None), *x.indices.long()[:, 1:].unbind(1)
        active = torch.zeros_like(sparse.dense(x)[:, :1])
        active[places] = 1

        def conv(layer: Any, volume: torch.Tensor) -> torch.Tensor:
            weight = layer.weight.permute(0, 4, 1, 2, 3)
            return F.conv3d(volume, weight, layer.bias, padding=1) * active

        def normed(norm: Any, volume: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(volume)
            out[places] = F.batch_norm(
                volume[places], norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias,
                training=training, eps=1e-3,
            )  # fmt: skip
            return out

        dense = sparse.dense(x)
        inner = normed(block.bn1, conv(block.conv1, dense)).relu()
        expected = (normed(block.bn2, conv(block.conv2, inner)) + dense).relu()
        torch.testing.assert_close(sparse.dense(block(x)), expected, rtol=1e-4, atol=1e-5)


def sparse_input(model: Any, given: dict[str, Any]) -> Any:
    features = model.vfe(given)["voxel_features"]
    return sparse.sparse_tensor(features, given["voxel_coords"], model.backbone_3d.sparse_shape, 2)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("voxels", [(400, 300), (0, 0)])
def test_sparse_models_train_and_detect_under_autocast(backbone: str, voxels: tuple[int, int]) -> None:
    model = second_model(second_config(backbone)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, parts, _ = model(second_batch(voxels))
        detections = model.eval()(second_batch(voxels))[0]
    result["loss"].backward()
    plain = second_model(second_config(backbone)).train()(second_batch(voxels))[1]
    assert parts == pytest.approx(plain, rel=0.05, abs=1e-3)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert detections[0]["pred_boxes"].dtype == torch.float32


def test_height_layers_become_channels() -> None:
    model, given = second_model().eval(), second_batch()
    with torch.no_grad():
        model(given)
    found = given["encoded_spconv_tensor"]
    sample, z, y, x = found.indices[0].tolist()
    column = given["spatial_features"][sample, :, y, x]
    assert found.features.shape[1] == 128 and column[z::2].equal(found.features[0])


FAULTS = {
    "a width that does not fit": (
        lambda c: c["MAP_TO_BEV"].update(NUM_BEV_FEATURES=128),
        "NUM_BEV_FEATURES must be 256, 128 channels of the 3D backbone in 2 layers of height; got 128",
    ),
    "no sparse backbone": (
        lambda c: c.pop("BACKBONE_3D"),
        "HeightCompression) reads encoded_spconv_tensor, which no module before it writes",
    ),
}


@pytest.mark.parametrize("case", list(FAULTS))
def test_an_invalid_config_is_a_clear_error(case: str) -> None:
    change, message = FAULTS[case]
    config = second_config()
    change(config)
    with pytest.raises(ConfigError, match=re.escape(message)):
        second_model(config)
