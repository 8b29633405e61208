"""Expected times on a GPU: exact counts of single operators, and what follows from them."""

from __future__ import annotations

import pytest
import torch

from pcdet_freeze.bench.roofline import CARDS, LAUNCH, Operator, Operators, _row
from pcdet_freeze.models.map_layers import BatchNorm2d
from pcdet_freeze.utils.devices import forms_of_any_device


def test_a_product_counts_its_flops_and_the_bytes_of_its_tensors() -> None:
    with Operators() as operators:
        torch.ones(2, 3).mm(torch.ones(3, 4))
    assert operators.found[-1] == Operator(2 * 2 * 3 * 4, 4 * (2 * 3 + 3 * 4 + 2 * 4), "float32")


def test_convolutions_are_tf32_and_half_precision_is_its_own() -> None:
    image, weight = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 1, 1)
    with Operators() as operators:
        torch.conv2d(image, weight)
        image.bfloat16() + 1
    kinds = [operator.kind for operator in operators.found]
    assert kinds[0] == "tf32" and kinds[-1] == "bfloat16"


def test_views_and_allocations_cost_nothing() -> None:
    with Operators() as operators:
        torch.empty(5).view(5, 1).transpose(0, 1)
    assert operators.found == []


def test_an_expanded_tensor_is_read_once() -> None:
    with Operators() as operators:
        torch.ones(1).expand(1000) + 0
    assert operators.found[-1].bytes == 4 + 4000


def test_operators_for_a_cpu_alone_do_not_count() -> None:
    maps = torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    norm = BatchNorm2d(8)
    with forms_of_any_device(), Operators() as operators:
        norm(maps)
    assert len(operators.found) == 2  # the counter of batches, and torch's own norm
    with Operators() as operators:
        norm(maps)
    assert len(operators.found) > 5


def test_a_batch_is_extrapolated_from_two_sizes() -> None:
    few, many = [Operator(0, 10**9, "float32")], [Operator(0, 2 * 10**9, "float32")]
    row, card = _row("none", (1, 2), few, many), CARDS[0]
    assert row["bytes"] == pytest.approx(1e9)
    assert row[card.name]["seconds"] == pytest.approx(16e9 / card.bandwidth)


def test_many_small_kernels_are_limited_by_the_host() -> None:
    row = _row("none", (1, 2), [Operator(0, 8, "float32")] * 1000, [Operator(0, 8, "float32")] * 1000)
    found = row[CARDS[0].name]
    assert found["limit"] == "host" and found["frames_per_second"] == pytest.approx(16 / (1000 * LAUNCH))
