"""Sketches of outputs: distances of tensors from a few thousand sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pcdet_freeze.freezing.checks.output_sketch import BUCKETS, PIECE, Sketcher, max_relative_error
from pcdet_freeze.utils.tensors import relative_error

SHAPES = [(3,), (BUCKETS,), (PIECE + 5,), (60, 64, 100), (2, 3, PIECE // 2), (2, 2, PIECE + 7)]


def error(a: Tensor, b: Tensor) -> float:
    sketch = Sketcher()
    return max_relative_error(sketch({"x": a}), sketch({"x": b}))


def tensor(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_distance_is_that_of_the_tensors_also_for_constant_and_alternating_differences(shape) -> None:
    a = tensor(shape)
    signs = (torch.arange(a.numel()) % 2 * 2 - 1).view(shape)
    for difference in (1e-3 * tensor(shape, 1), torch.full(shape, 1e-3), 1e-3 * signs):
        assert error(a, a + difference) == pytest.approx(relative_error(a, a + difference), rel=0.15)


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_tensors_have_no_distance_whatever_their_strides(shape) -> None:
    a = tensor(shape)
    b = torch.empty(shape[::-1]).permute(*reversed(range(len(shape)))).copy_(a)
    assert error(a, a.clone()) == 0 and error(a, b) == 0


@pytest.mark.parametrize("place", [0, PIECE - 1, 2 * PIECE + 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_element_that_is_not_finite_must_be_so_in_both(place: int, value: float) -> None:
    a = tensor((3 * PIECE,))
    b = a.clone()
    b[place] = value
    assert error(a, b) == math.inf and error(b, a) == math.inf and error(b, b.clone()) == 0
    b[place - 1] = value
    assert error(b, a) == math.inf


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64, torch.complex64])
def test_each_dtype_is_compared(dtype: torch.dtype) -> None:
    a = (tensor((50, 200)) * 9).to(dtype)
    b = a.clone()
    b[3, 7] = 100 if dtype is not torch.bool else not bool(a[3, 7])
    assert error(a, a.clone()) == 0 and 0 < error(a, b) < math.inf


def test_another_shape_or_another_name_is_infinitely_far() -> None:
    sketch = Sketcher()
    a, b = sketch({"x": torch.ones(3), "y": torch.ones(2)}), sketch({"x": torch.ones(4), "y": torch.ones(2)})
    assert max_relative_error(a, b) == math.inf and max_relative_error(a, b, common=True) == 0
    assert max_relative_error(a, sketch({"x": torch.ones(3)})) == math.inf


def test_a_sketch_of_a_large_tensor_is_small_and_one_of_nothing_is_empty() -> None:
    found = Sketcher()({"x": torch.ones(3 * PIECE), "none": torch.ones(0, 3)})
    assert found["x"].numbers.numel() == BUCKETS + 2 and found["none"].numbers.tolist() == [0, 0]
