"""The loss terms of the anchor heads compared with their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from pcdet_freeze.models.dense_heads.losses import (
    direction_bins,
    replace_nan_targets,
    sigmoid_focal_loss,
    sine_difference,
    smooth_l1,
)


def test_focal_loss_is_the_formula_of_the_paper() -> None:
    logits, targets = torch.tensor([2.0, 2.0, -1.0, -1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    chance = logits.double().sigmoid()
    right = torch.where(targets > 0, chance, 1 - chance)
    alpha = torch.where(targets > 0, 0.25, 0.75)
    expected = -alpha * (1 - right) ** 2 * right.log()
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets).double(), expected)


def test_focal_loss_and_its_gradient_stay_finite_for_extreme_logits() -> None:
    logits = torch.tensor([-500.0, -100.0, 100.0, 500.0]).repeat(2).requires_grad_()
    targets = torch.tensor([0.0] * 4 + [1.0] * 4)
    losses = sigmoid_focal_loss(logits, targets)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_focal_loss_counts_in_float32(dtype: torch.dtype) -> None:
    assert sigmoid_focal_loss(torch.zeros(3, dtype=dtype), torch.ones(3)).dtype == torch.float32


def test_smooth_l1_is_quadratic_then_linear_without_a_step() -> None:
    beta = 1 / 9
    values = smooth_l1(torch.tensor([0.0, beta / 2, beta, 1.0, -1.0]))
    expected = [0, beta / 8, beta / 2, 1 - beta / 2, 1 - beta / 2]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_a_box_turned_by_half_a_circle_has_no_heading_error() -> None:
    boxes = torch.zeros(3, 7)
    turned = boxes.clone()
    turned[:, 6] = torch.tensor([0.0, math.pi, 0.5])
    difference = sine_difference(boxes, turned)
    torch.testing.assert_close(difference[:, 6], torch.tensor([0.0, 0.0, -math.sin(0.5)]), atol=1e-6, rtol=0)
    assert not difference[:, :6].any()


def test_a_nan_target_gives_no_loss() -> None:
    predicted = torch.randn(2, 9, requires_grad=True)
    target = torch.zeros(2, 9)
    target[:, 7:] = torch.nan
    sine_difference(predicted, replace_nan_targets(predicted, target)).square().sum().backward()
    assert torch.isfinite(predicted.grad).all()
    assert not predicted.grad[:, 7:].any()


def test_headings_fall_into_equal_sectors_from_the_offset_on() -> None:
    offset = math.pi / 4
    headings = torch.tensor(
        [offset + 0.01, offset + 3.1, offset + 3.2, offset - 0.01, offset + 2 * math.pi + 0.01]
    )
    assert direction_bins(headings, offset, 2).tolist() == [0, 0, 1, 1, 0]
    assert direction_bins(headings, offset, 4).tolist() == [0, 1, 2, 3, 0]
