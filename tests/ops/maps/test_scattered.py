"""The map that pillars were scattered into is not kept for the backward pass of the layer that reads it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.bench import exact_figures
from pcdet_freeze.models.map_layers import MapSequential
from pcdet_freeze.ops.maps.scattered import keep_pillars, scatter

CHANNELS, HEIGHT, WIDTH = 8, 24, 20


def layers() -> MapSequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, 16, 3, stride=2, bias=False)
    return MapSequential(nn.ZeroPad2d(1), conv, nn.BatchNorm2d(16), nn.ReLU())


def scattered(keep: bool) -> tuple[Tensor, Tensor]:
    """Features of 30 pillars, and the map of two samples."""
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(30, CHANNELS, generator=draw, requires_grad=True)
    cells = torch.randperm(2 * HEIGHT * WIDTH, generator=draw)[:30]
    maps = scatter(features, cells, 2, HEIGHT, WIDTH)
    return features, keep_pillars(maps, features, cells) if keep else maps


def step(keep: bool, change: Any = None) -> tuple[int, list[Tensor]]:
    """Bytes that the graph keeps; output and gradients."""
    block, found = layers(), []

    def run() -> None:
        features, maps = scattered(keep)
        if change is not None:
            change(maps)
        out = block(maps)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        found.extend([out.detach(), features.grad, *(p.grad for p in block.parameters())])

    return exact_figures.count_saved_bytes(run, block.parameters()), found


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_outputs_and_gradients_are_equal_to_the_bit_and_the_map_is_not_kept() -> None:
    (plain_bytes, plain), (bytes_, found) = step(False), step(True)
    assert equal(found, plain)
    pillars = 30 * (CHANNELS * 4 + 8)
    assert bytes_ <= plain_bytes - 2 * CHANNELS * HEIGHT * WIDTH * 4 + pillars


def test_a_map_that_was_changed_is_computed_with_its_new_values() -> None:
    def change(maps: Tensor) -> None:
        maps.mul_(2)

    assert equal(step(True, change)[1], step(False, change)[1])


def test_hooks_on_the_map_get_its_gradient() -> None:
    seen: list[list[Tensor]] = [[], []]
    for keep in (False, True):
        step(keep, lambda maps, keep=keep: maps.register_hook(seen[keep].append))
    assert equal(*seen) and len(seen[0]) == 1


def test_a_frozen_convolution_keeps_nothing_of_the_map() -> None:
    features, maps = scattered(True)
    block = layers().requires_grad_(False)
    block(maps).sum().backward()
    assert features.grad is not None and not hasattr(block[1].weight.grad, "shape")
