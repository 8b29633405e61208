"""Batch norm of channels-last maps: exact statistics, the same values and gradients, the ReLU in one go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pcdet_freeze.models.map_layers import BatchNorm2d, MapSequential
from pcdet_freeze.ops.maps import map_norm
from pcdet_freeze.utils.tensors import relative_error

LAST = torch.channels_last


def some_map(channels: int = 8, height: int = 37, width: int = 41) -> Tensor:
    """A map whose channels have means of up to ten standard deviations."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(2, channels, height, width, generator=draw)
    return (values + 10 * torch.rand(channels, 1, 1, generator=draw)).contiguous(memory_format=LAST)


def norm_of(kind: type[nn.BatchNorm2d], channels: int = 8, **options: object) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    norm = kind(channels, eps=1e-3, **options)  # type: ignore[arg-type]
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    return norm


def ran(norm: nn.Module, maps: Tensor) -> list[Tensor]:
    """Output of ``norm``, gradients of a loss, running statistics."""
    given = maps.clone().requires_grad_()
    result = norm(given)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2)).to(result.dtype)
    (result * weights.contiguous(memory_format=LAST)).sum().backward()
    own = [p.grad for p in norm.parameters()]
    return [t for t in (result.detach(), given.grad, *own, *norm.buffers()) if t is not None]


class Part(nn.Module):
    """Some channels of a map, as one of several layers that are computed together gives them."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps[:, 2:10]


@pytest.fixture(params=[1 << 17, 1 << 9])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block for the whole map, and many, the last of them smaller."""
    monkeypatch.setattr(map_norm, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("relu", [False, True])
def test_values_gradients_and_running_statistics_are_exact(relu: bool) -> None:
    behind = [nn.ReLU()] if relu else []
    exact = ran(nn.Sequential(norm_of(nn.BatchNorm2d).double(), *behind), some_map().double())
    own = ran(MapSequential(norm_of(BatchNorm2d), *behind), some_map())
    assert max(relative_error(a, b.to(a.dtype)) for a, b in zip(exact, own, strict=True)) < 1e-6


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("behind", [[], [nn.ReLU()]])
def test_values_gradients_and_running_statistics_of_some_channels_are_exact(behind: list[nn.Module]) -> None:
    norm, wide = norm_of(BatchNorm2d), some_map(channels=12)
    exact = ran(nn.Sequential(Part(), norm_of(nn.BatchNorm2d).double(), *behind), wide.double())
    own = ran(nn.Sequential(Part(), MapSequential(norm, *behind)), wide)
    assert max(relative_error(a, b.to(a.dtype)) for a, b in zip(exact, own, strict=True)) < 1e-6
    assert MapSequential(norm, *behind)(wide[:, 2:10]).is_contiguous(memory_format=LAST)


def test_the_variance_of_some_channels_of_a_large_map_is_exact() -> None:
    maps, norm = some_map(channels=6, height=400, width=400)[:, 1:5], norm_of(BatchNorm2d, 4, momentum=1.0)
    norm(maps)
    assert norm.running_var is not None
    assert relative_error(maps.double().var(dim=(0, 2, 3)), norm.running_var.double()) < 2e-7


def test_the_variance_of_a_large_map_is_closer_than_that_of_torch() -> None:
    maps = some_map(channels=4, height=400, width=400)
    exact = maps.double().var(dim=(0, 2, 3), correction=0)
    torchs = torch.native_batch_norm(maps, None, None, None, None, True, 0.0, 0.0)[2].double() ** -2
    assert relative_error(exact, torchs) > 1e-6
    assert relative_error(exact, map_norm.Moments(maps.permute(0, 2, 3, 1).flatten(0, 2)).variance) < 1e-7


@pytest.mark.parametrize("options", [{"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_options_of_the_norm_mean_what_they_mean_in_torch(options: dict[str, object]) -> None:
    exact, own = norm_of(nn.BatchNorm2d, **options).double(), norm_of(BatchNorm2d, **options)
    for _ in range(2):
        expected, found = ran(exact, some_map().double()), ran(own, some_map())
    assert len(expected) == len(found)
    assert max(relative_error(a, b.to(a.dtype)) for a, b in zip(expected, found, strict=True)) < 1e-6


@pytest.mark.usefixtures("block")
def test_a_norm_with_its_relu_equals_the_two_layers_to_the_bit() -> None:
    together = MapSequential(norm_of(BatchNorm2d), nn.ReLU())
    apart = nn.Sequential(norm_of(BatchNorm2d), nn.ReLU())
    for a, b in zip(ran(together, some_map()), ran(apart, some_map()), strict=True):
        assert torch.equal(a, b)


def test_on_a_contiguous_map_and_in_eval_mode_it_is_torchs_norm_to_the_bit() -> None:
    for maps, training in ((some_map().contiguous(), True), (some_map(), False)):
        own, torchs = norm_of(BatchNorm2d).train(training), norm_of(nn.BatchNorm2d).train(training)
        assert all(map(torch.equal, ran(own, maps), ran(torchs, maps)))


def test_one_value_a_channel_is_an_error_as_in_torch() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        norm_of(BatchNorm2d)(torch.randn(1, 8, 1, 1))


def test_under_autocast_torchs_norm_runs() -> None:
    own, torchs = norm_of(BatchNorm2d), norm_of(nn.BatchNorm2d)
    maps = some_map().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(own(maps), torchs(maps))


def test_a_result_that_is_changed_in_place_is_an_error_in_the_backward_pass() -> None:
    result = MapSequential(norm_of(BatchNorm2d), nn.ReLU())(some_map().requires_grad_())
    result += 1
    with pytest.raises(RuntimeError, match="inplace"):
        result.sum().backward()
