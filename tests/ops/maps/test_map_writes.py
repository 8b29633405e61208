"""Convolutions that write their ReLU into some channels of a channels-last map."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pcdet_freeze.ops.maps import map_writes
from pcdet_freeze.ops.maps.map_layout import map_of
from pcdet_freeze.ops.maps.map_writes import convolve_relu_into, spread_relu_into
from pcdet_freeze.utils.tensors import relative_error

LAST = torch.channels_last


@pytest.mark.parametrize("block", [1 << 17, 700])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_transposed_convolution_writes_its_channels_alone(
    size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_writes, "BLOCK", block)
    maps = torch.randn(2, 5, 7, 6).contiguous(memory_format=LAST)
    weight, bias = torch.randn(5, 3, size, size), torch.randn(3)
    rows = torch.full((2 * 7 * size * 6 * size, 8), -1.0)
    spread_relu_into(maps, weight, bias, rows[:, 2:5])
    exact = F.conv_transpose2d(maps.double(), weight.double(), bias.double(), stride=size).relu()
    assert relative_error(exact.float(), map_of(rows, 2, 7 * size, 6 * size)[:, 2:5]) < 1e-6
    assert (rows[:, [0, 1, 5, 6, 7]] == -1).all()


def test_a_1x1_convolution_writes_its_channels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_writes, "BLOCK", 100)
    maps = torch.randn(2, 5, 7, 6).contiguous(memory_format=LAST)
    weight, bias, rows = torch.randn(3, 5, 1, 1), torch.randn(3), torch.full((2 * 7 * 6, 4), -1.0)
    convolve_relu_into(maps, weight, bias, rows[:, 1:])
    exact = F.conv2d(maps.double(), weight.double(), bias.double()).relu()
    assert relative_error(exact.float(), map_of(rows, 2, 7, 6)[:, 1:]) < 1e-6
    assert (rows[:, 0] == -1).all()
