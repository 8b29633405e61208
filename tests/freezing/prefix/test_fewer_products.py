"""F5: folded 3x3 convolutions of channels-last maps by fewer products."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import FastForward, Options, plan_for, winograd
from pcdet_freeze.freezing.prefix.fold_bn import Fold
from pcdet_freeze.freezing.prefix.winograd import convolve_pairs, pair_weights, takes
from pcdet_freeze.utils.tensors import relative_error

LAST = torch.channels_last
FEW = Options(few_products=True, channels_last=True)


@pytest.fixture(autouse=True)
def few_channels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Layers of few channels take the form too; records the shape of each map that is convolved by it."""
    shapes: list[Any] = []

    def recorded(maps: Tensor, *others: Any) -> Tensor:
        shapes.append(tuple(maps.shape))
        return convolve_pairs(maps, *others)

    monkeypatch.setattr(winograd, "CHANNELS", 1)
    monkeypatch.setattr("pcdet_freeze.freezing.prefix.fold_bn.convolve_pairs", recorded)
    yield shapes


def maps_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=LAST)


class Model(nn.Module):
    """A frozen block, as OpenPCDet's: a padding layer, then convolutions with norm and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        first = [nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3, bias=False)]
        then: list[nn.Module] = [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
        self.block = nn.Sequential(*first, nn.BatchNorm2d(4), nn.ReLU(), *then)
        self.head, self.skips = nn.Conv2d(4, 1, 1), False
        self(maps_of(2, 3, 6, 8))  # statistics of a batch

    def forward(self, maps: Tensor) -> Tensor:
        self.maps = (self.block[:-1] if self.skips else self.block)(maps)
        return self.head(self.maps).sum()


def fast_model() -> tuple[Model, FastForward]:
    model = Model().train()
    freeze(model, ["block"])
    return model, FastForward(model, plan_for(model, (maps_of(2, 3, 6, 8),), options=FEW), FEW)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("room", [1, 60, 1 << 20])
@pytest.mark.parametrize("size", [(1, 2), (7, 6), (8, 10)])
def test_f5_the_outputs_are_those_of_the_convolution(
    size: tuple[int, int], room: int, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "ROOM", room)
    maps, weight, bias = maps_of(2, 3, *size), torch.randn(5, 3, 3, 3), torch.randn(5)
    exact = F.conv2d(maps.double(), weight.double(), bias.double(), 1, 1)
    found = convolve_pairs(maps, pair_weights(weight), bias, relu)
    assert relative_error((exact.relu() if relu else exact).float(), found) < 1e-6
    assert found.is_contiguous(memory_format=LAST)
    assert torch.equal(found[1:], convolve_pairs(maps[1:], pair_weights(weight), bias, relu))


def test_f5_a_frozen_block_runs_by_fewer_products_within_the_tolerance(few_channels: list[Any]) -> None:
    model, fast = fast_model()
    maps = maps_of(2, 3, 6, 8)
    model(maps)
    own = model.maps
    few_channels.clear()
    with fast:
        model(maps).backward()
    assert few_channels == [(2, 3, 6, 8), (2, 4, 6, 8)]
    assert 0 < relative_error(own, model.maps) < 2e-6 and model.head.weight.grad is not None


def test_f5_the_error_of_fewer_products_is_that_of_the_plan(few_channels: list[Any]) -> None:
    plan = fast_model()[1].plan
    assert few_channels and len(plan.folds) == 2 and plan.difference is not None
    assert 0 < plan.difference < 2e-6


def test_f5_a_layer_whose_relu_is_skipped_is_an_error() -> None:
    model, fast = fast_model()
    model.skips = True
    with pytest.raises(FreezeError, match=r"block.5 .*FUSE"), fast:
        model(maps_of(2, 3, 6, 8))


def test_f5_fewer_products_use_the_present_weights() -> None:
    model, fast = fast_model()
    maps = maps_of(2, 3, 6, 8)
    with fast:
        model(maps)
    with torch.no_grad():
        model.block[1].weight.mul_(2.0)
    model(maps)
    own = model.maps
    with fast:
        model(maps)
    assert relative_error(own, model.maps) < 2e-6


@pytest.mark.parametrize("options", [Options(), FEW])
def test_f5_other_maps_and_options_run_the_convolution_of_torch(
    options: Options, few_channels: list[Any]
) -> None:
    layer, norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4).eval()
    maps = maps_of(2, 3, 6, 8) if not options.few_products else maps_of(2, 3, 6, 8).contiguous()
    with torch.no_grad():
        Fold(layer, norm, options).run_layer(maps)
    assert few_channels == []


@pytest.mark.parametrize(
    "changed",
    [{"stride": 2}, {"groups": 3}, {"kernel_size": 5}, {"padding_mode": "circular"}, {"dilation": 2}],
)
def test_f5_other_convolutions_have_no_such_form(changed: dict[str, Any]) -> None:
    layer = nn.Conv2d(**{"in_channels": 3, "out_channels": 3, "kernel_size": 3, "padding": 1, **changed})
    assert not takes(layer, maps_of(2, 3, 6, 8), (1, 1))


def test_f5_odd_lines_live_maps_few_channels_and_autocast_have_no_such_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, maps = nn.Conv2d(3, 3, 3, padding=1), maps_of(2, 3, 6, 8)
    assert takes(layer, maps, (1, 1)) and not takes(layer, maps, (0, 0))
    assert not takes(layer, maps_of(2, 3, 6, 7), (1, 1))
    assert not takes(layer, maps.double(), (1, 1)) and not takes(
        layer, maps_of(2, 3, 6, 8).requires_grad_(), (1, 1)
    )
    with torch.autocast("cpu"):
        assert not takes(layer, maps, (1, 1))
    monkeypatch.setattr(winograd, "CHANNELS", 4)
    assert not takes(layer, maps, (1, 1))
