"""The plain steps of the benchmark compute the same loss and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cut_models import CutModel
from plain_steps import PlainStep


@pytest.mark.parametrize("name", ["kitti_models/pointpillar", "kitti_models/second"])
def test_a_plain_step_has_the_loss_and_the_gradients_of_ours(root: Path, name: str) -> None:
    cut = CutModel(root, name)
    model = cut.model.train()
    model(cut.batch())[0]["loss"].backward()
    loss = model.get_training_loss()[0].item()
    ours = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    plain = PlainStep(model)(cut.batch())
    plain.backward()
    assert plain.item() == pytest.approx(loss, rel=1e-5)
    for key, parameter in model.named_parameters():
        scale = ours[key].abs().max().item()
        torch.testing.assert_close(parameter.grad, ours[key], rtol=1e-2, atol=1e-3 * scale + 1e-6, msg=key)
