"""Training a partially frozen sparse model: frozen tensors stay equal bit for bit, all others change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from second_cases import BACKBONES, second_batch, second_config, second_model, sparse_center_config

from pcdet_freeze.freezing import freeze

LISTS = {
    "the 3D part": ["vfe", "backbone_3d"],
    "levels of the 3D part": ["backbone_3d.conv_input", "backbone_3d.conv[12]"],
    "all but the head": ["vfe", "backbone_3d", "backbone_2d"],
    "the 3D part from below": ["backbone_3d.conv_out", "backbone_2d.blocks"],
}


def assert_frozen_steps(config: dict[str, Any], names: list[str]) -> None:
    """Five steps: frozen tensors are bitwise equal, every other parameter and statistic changes."""
    model = second_model(config).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    handle = freeze(model, names)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(5):
        model.train()
        optimizer.zero_grad()
        model(second_batch())[0]["loss"].backward()
        optimizer.step()
    handle.verify()
    frozen = {f"{name}.{key}" for name in handle.names for key in model.get_submodule(name).state_dict()}
    assert frozen and len(frozen) < len(before)
    for key, value in model.state_dict().items():
        if key != "global_step":
            assert value.equal(before[key]) == (key in frozen), key


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("names", list(LISTS.values()), ids=list(LISTS))
def test_five_frozen_steps_of_second_keep_the_contract(backbone: str, names: list[str]) -> None:
    assert_frozen_steps(second_config(backbone), names)


@pytest.mark.parametrize("names", [["vfe", "backbone_3d"], ["vfe", "backbone_3d", "backbone_2d"]])
def test_five_frozen_steps_of_a_sparse_centerpoint_keep_the_contract(names: list[str]) -> None:
    assert_frozen_steps(sparse_center_config(), names)


def test_five_frozen_steps_with_dynamic_means_keep_the_contract() -> None:
    assert_frozen_steps(second_config(vfe="DynamicMeanVFE"), ["backbone_3d", "backbone_2d.blocks"])


def test_h9_gradients_reach_a_trainable_part_before_a_frozen_sparse_one() -> None:
    model = second_model().train()
    freeze(model, ["backbone_3d.conv4", "backbone_3d.conv_out"])
    model(second_batch())[0]["loss"].backward()
    assert model.backbone_3d.conv_input[0].weight.grad.abs().sum() > 0
