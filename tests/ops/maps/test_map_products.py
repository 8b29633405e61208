"""Convolutions of channels-last maps that are one matrix product, and maps that are joined without a copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pcdet_freeze.ops.maps import map_products
from pcdet_freeze.ops.maps.map_layout import JoinedMap, is_channels_last, lies_in_rows, map_of, rows_of
from pcdet_freeze.ops.maps.map_products import convolve_cells, spread_cells
from pcdet_freeze.utils.tensors import relative_error

LAST = torch.channels_last


def gradients(result: Tensor, *given: Tensor) -> list[Tensor]:
    """The result, and the gradients of ``given`` for a loss."""
    draw = torch.Generator().manual_seed(3)
    weights = torch.randn(result.shape, generator=draw).to(result.dtype).contiguous(memory_format=LAST)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), given)]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(relative_error(b, a.to(b.dtype)) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("room", [1 << 19, 700])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_transposed_convolution_whose_kernel_is_its_stride(
    size: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_products, "ROOM", room)
    maps = torch.randn(2, 5, 7, 6).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = torch.randn(5, 3, size, size, requires_grad=True), torch.randn(3, requires_grad=True)
    given = (maps, weight, bias)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in given)
    result = spread_cells(*given)
    assert is_channels_last(result)
    expected = F.conv_transpose2d(*exact, stride=size)
    assert worst(gradients(result, *given), gradients(expected, *exact)) < 1e-6


def test_a_1x1_convolution() -> None:
    maps = torch.randn(2, 5, 7, 6).contiguous(memory_format=LAST).requires_grad_()
    given = (maps, torch.randn(3, 5, 1, 1, requires_grad=True), torch.randn(3, requires_grad=True))
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in given)
    result = convolve_cells(*given)
    assert is_channels_last(result)
    assert worst(gradients(result, *given), gradients(F.conv2d(*exact), *exact)) < 1e-6


@pytest.mark.parametrize("size", [1, 2])
def test_convolutions_of_some_channels_of_a_map(size: int) -> None:
    maps = torch.randn(2, 9, 7, 6).contiguous(memory_format=LAST).requires_grad_()
    given = (maps, torch.randn(5, 3, size, size, requires_grad=True), torch.randn(3, requires_grad=True))
    whole, weight, bias = exact = tuple(tensor.detach().double().requires_grad_() for tensor in given)
    expected = F.conv_transpose2d(whole[:, 2:7], weight, bias, stride=size)
    result = spread_cells(maps[:, 2:7], *given[1:])
    assert is_channels_last(result)
    assert worst(gradients(result, *given), gradients(expected, *exact)) < 1e-6


def test_neighbouring_channels_lie_in_rows_and_other_parts_of_a_map_do_not() -> None:
    last = torch.randn(2, 6, 5, 4).contiguous(memory_format=LAST)
    for part in (last, last[:, 1:3], last[:, 5:], last[1:, 1:3]):
        assert lies_in_rows(part) and rows_of(part).data_ptr() == part.data_ptr()
    lines, cells = last[:, :, 1:], last[:, :, :, 1:]
    single = torch.randn(2, 1, 5, 1).expand(2, 6, 5, 4)
    assert not any(
        map(lies_in_rows, (last.contiguous()[:, 1:3], last[:, ::2], lines, cells, single, last[0]))
    )


def test_parts_that_lie_side_by_side_are_joined_without_a_copy() -> None:
    joined = JoinedMap(torch.zeros(0), (2, 3, 4), [2, 5])
    parts = [map_of(place.normal_(), 2, 3, 4).data.requires_grad_() for place in joined.places]
    whole = joined.join(parts)
    assert whole.data_ptr() == parts[0].data_ptr() and torch.equal(whole, torch.cat(parts, dim=1))
    upper = torch.randn(2, 7, 3, 4)
    assert all(map(torch.equal, torch.autograd.grad(whole, parts, upper), upper.split([2, 5], dim=1)))


def test_a_part_that_lies_elsewhere_is_copied() -> None:
    joined = JoinedMap(torch.zeros(0), (2, 3, 4), [2, 5])
    parts = [torch.randn(2, 2, 3, 4), torch.randn(2, 5, 3, 4)]
    assert torch.equal(joined.join(parts), torch.cat(parts, dim=1))


def test_rows_of_a_map_and_back() -> None:
    maps = torch.randn(2, 5, 3, 4).contiguous(memory_format=LAST)
    assert rows_of(maps).data_ptr() == maps.data_ptr()
    assert torch.equal(map_of(rows_of(maps), 2, 3, 4), maps)
