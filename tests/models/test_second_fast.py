"""F5 in sparse models: folding frozen norm layers into sparse convolutions."""

from __future__ import annotations

import pytest
import torch
from second_cases import BACKBONES, second_batch, second_config, second_model

from pcdet_freeze.freezing import freeze, layer_types
from pcdet_freeze.freezing.prefix import Options, Replanner
from pcdet_freeze.utils.tensors import relative_error


@pytest.mark.parametrize("backbone", BACKBONES)
def test_f5_every_norm_layer_of_a_frozen_sparse_backbone_is_folded(backbone: str) -> None:
    model = second_model(second_config(backbone)).train()
    for module in filter(layer_types.is_norm, model.modules()):
        torch.nn.init.normal_(module.running_mean, std=0.1)
        torch.nn.init.uniform_(module.running_var, 0.5, 2)
    norms = sum(map(layer_types.is_norm, model.backbone_3d.modules()))
    freeze(model, ["vfe", "backbone_3d"])
    fast, plain, folded = Replanner(model), second_batch(), second_batch()
    fast.prepare(second_batch())
    assert fast.plan.prefix == ("vfe", "backbone_3d") and len(fast.plan.folds) == norms
    assert fast.plan.difference is not None and fast.plan.difference <= 2e-6
    model(plain)
    with fast.fast:
        model(folded)
    assert 0 < relative_error(plain["spatial_features"], folded["spatial_features"]) <= 2e-6


def test_f6_a_bf16_prefix_leaves_sparse_convolutions_in_float32() -> None:
    model = second_model().train()
    freeze(model, ["vfe", "backbone_3d", "backbone_2d.blocks"])
    fast, plain, low = Replanner(model, Options(dtype=torch.bfloat16)), second_batch(), second_batch()
    fast.prepare(second_batch())
    model(plain)
    with fast.fast:
        model(low)
    assert relative_error(plain["spatial_features"], low["spatial_features"]) <= 2e-6
    assert 0 < relative_error(plain["spatial_features_2d"], low["spatial_features_2d"]) < 0.05
