"""Training a partially frozen CenterPoint: frozen tensors stay equal bit for bit, all others change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from center_cases import VFES, center_batch, center_config, center_model

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import freeze

LISTS = {
    "the shared part": ["vfe", "backbone_2d.blocks"],
    "all but the separate heads": ["vfe", "backbone_2d", "dense_head.shared_conv"],
    "one group of classes": ["vfe", "dense_head.heads_list.0"],
}


def trained_frozen(config: dict[str, Any], names: list[str]) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model after five frozen steps, its handle, and its state before them."""
    model = center_model(config).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    handle = freeze(model, names)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(5):
        model.train()
        optimizer.zero_grad()
        model(center_batch())[0]["loss"].backward()
        optimizer.step()
    return model, handle, before


@pytest.mark.parametrize("vfe", VFES)
@pytest.mark.parametrize("names", list(LISTS.values()), ids=list(LISTS))
def test_five_frozen_steps_keep_the_contract(vfe: str, names: list[str]) -> None:
    model, handle, before = trained_frozen(center_config(vfe), names)
    handle.verify()
    moved, parameters = [], dict(model.named_parameters())
    for key, value in model.state_dict().items():
        if any(key == name or key.startswith(f"{name}.") for name in names):
            assert value.equal(before[key]), f"{key} is frozen"
        elif key in parameters:
            moved.append(key)
            # a bias before a norm has a gradient of rounding noise; Adam steps by its sign all the same
            assert not value.equal(before[key]), f"{key} trains"
        elif "running_" in key or "num_batches" in key:
            assert not value.equal(before[key]), f"{key} counts"
    assert moved


def test_a_model_whose_only_head_is_frozen_cannot_train() -> None:
    model = center_model().train()
    freeze(model, ["dense_head"])
    model.train()
    with pytest.raises(FreezeError, match="all heads are fully frozen: dense_head"):
        model(center_batch())
