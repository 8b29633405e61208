"""F5, empty space: a block that computes reached cells only gives what the whole block gives."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import FastForward, Options, plan_for
from pcdet_freeze.freezing.prefix import empty_space as subject
from pcdet_freeze.utils.tensors import relative_error

CELLS = ((0, 20, 10), (0, 0, 47), (1, 63, 30))
"""sample, row and column of the occupied cells"""


def block(channels: int, width: int) -> nn.Sequential:
    """A stride of 2, then a convolution of the same size, as in BaseBEVBackbone."""
    layers: list[nn.Module] = [nn.ZeroPad2d(1), nn.Conv2d(channels, width, 3, stride=2, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())


class Trunk(nn.Module):
    """Two frozen blocks, each read by a trainable layer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([block(4, 8), block(8, 16)])
        self.ups = nn.ModuleList([nn.Conv2d(8, 1, 1), nn.Conv2d(16, 1, 1)])

    def forward(self, value: Tensor) -> list[Tensor]:
        found = []
        for one, up in zip(self.blocks, self.ups, strict=True):
            value = one(value)
            found.append(up(value))
        return found


def trunk() -> Trunk:
    torch.manual_seed(0)
    model = Trunk()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    freeze(model, ["blocks"])
    return model.train()


def sparse_map(*cells: tuple[int, int, int], channels_last: bool = False) -> Tensor:
    """(2, 4, 64, 48), zero except in ``cells``."""
    value = torch.zeros(2, 4, 64, 48)
    for sample, y, x in cells:
        value[sample, :, y, x] = torch.randn(4)
    return value.contiguous(memory_format=torch.channels_last) if channels_last else value


def fast_of(model: nn.Module, value: Tensor, options: Options | None = None) -> FastForward:
    return FastForward(model, plan_for(model, (value,), None, options), options)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of cells that were computed, for each layer of each sample."""
    found: list[int] = []
    reached = subject._Layer.reached

    def counted(layer: Any, before: Any, mask: Tensor) -> Any:
        found.append(int(mask.sum()))
        return reached(layer, before, mask)

    monkeypatch.setattr(subject._Layer, "reached", counted)
    return found


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_f5_reached_cells_alone_give_the_map_of_the_whole_block(last: bool) -> None:
    model, value = trunk(), sparse_map(*CELLS, channels_last=last)
    fast, expected = fast_of(model, value), model(value)
    assert [path for path, _ in fast.plan.reached] == ["blocks.0", "blocks.1"]
    with fast:
        found = model(value)
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(expected, found, strict=True))
    assert [a.stride() for a in expected] == [b.stride() for b in found]
    assert "blocks.0, blocks.1 on the cells that a pillar can reach" in "".join(fast.plan.lines())


def test_f5_only_reached_cells_are_computed(computed: list[int]) -> None:
    model, value = trunk(), sparse_map((0, 20, 10), (1, 21, 11))
    fast = fast_of(model, value)
    computed.clear()
    with fast:
        model(value)
    # with a stride of 2, an even row or column is read by one cell, an odd one by two
    assert computed == [1 * 1, 3 * 3, 2 * 2, 4 * 4, 3 * 2, 5 * 4, 3 * 3, 5 * 5]


def test_f5_the_values_of_a_sample_do_not_depend_on_its_batch() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    with fast_of(model, value) as fast:
        together = model(value)
    with fast:
        alone = model(value[1:].clone())
    assert all(torch.equal(a[1:], b) for a, b in zip(together, alone, strict=True))


def test_f5_a_map_of_which_most_cells_are_reached_is_computed_as_a_whole(computed: list[int]) -> None:
    model, value = trunk(), torch.randn(2, 4, 64, 48)
    plain = fast_of(model, value, Options(skip_empty=False))
    with plain:
        expected = model(value)
    with fast_of(model, value):
        assert all(torch.equal(a, b) for a, b in zip(expected, model(value), strict=True))
    assert computed == []


def test_f5_samples_with_many_and_with_few_pillars_may_be_in_one_batch() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    value[1] = torch.randn(4, 64, 48)
    expected = model(value)
    with fast_of(model, value):
        found = model(value)
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(expected, found, strict=True))


def test_f5_weights_that_change_and_maps_of_another_size_are_computed_anew() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    fast = fast_of(model, value)
    with fast:
        model(value)
    with torch.no_grad():
        model.blocks[0][2].running_mean.add_(0.5)
    for given in (value, value[:, :, :40], sparse_map(*CELLS)):
        expected = model(given)
        with fast:
            found = model(given)
        assert all(relative_error(a, b) < 2e-6 for a, b in zip(expected, found, strict=True))


def test_f5_a_map_that_was_written_to_between_two_blocks_is_looked_at_again() -> None:
    class Writes(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            with torch.no_grad():
                value[:, :, 3, 3] += 1
            return value.mean()

    model, value = trunk(), sparse_map(*CELLS)
    model.ups[0] = Writes()
    expected = model(value)
    with fast_of(model, value):
        found = model(value)
    assert relative_error(expected[1], found[1]) < 2e-6


@pytest.mark.parametrize(
    "options", [Options(skip_empty=False), Options(fuse=False), Options(channels_last=True)]
)
def test_f5_without_skip_empty_or_folding_blocks_run_as_a_whole(
    options: Options, computed: list[int]
) -> None:
    model, value = trunk(), sparse_map(*CELLS)
    fast = fast_of(model, value, options)
    with fast:
        model(value)
    assert fast.plan.reached == () and computed == []


def test_f5_a_hook_inside_a_block_sees_every_call(computed: list[int]) -> None:
    model, value, seen = trunk(), sparse_map(*CELLS), list[Any]()
    fast = fast_of(model, value)
    computed.clear()
    model.blocks[0][4].register_forward_hook(lambda *call: seen.append(call))
    model.blocks[1][3].register_forward_hook(lambda *call: seen.append(call))
    with fast:
        model(value)
    assert len(seen) == 2 and computed == []


def test_f5_a_block_whose_error_is_too_large_runs_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, value = trunk(), sparse_map(*CELLS)
    prepare = subject.ReachedBlock._prepare

    def wrong(self: Any, *given: Any) -> None:
        prepare(self, *given)
        self._layers[0].table[1] += 1e-3

    monkeypatch.setattr(subject.ReachedBlock, "_prepare", wrong)
    plan = plan_for(model, (value,))
    assert "blocks.0" not in dict(plan.reached)
    assert any("blocks.0: its relative error would be" in line for line in plan.plain)


def test_f5_each_process_compares_the_first_map_that_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, value = trunk(), sparse_map(*CELLS)
    fast, expected = fast_of(model, value), model(value)
    with fast:
        model(value)
    again = FastForward(model, fast.plan)
    monkeypatch.setattr(subject, "TOLERANCE", -1.0)  # no error is small enough
    with again:
        found = model(value)
    assert all(relative_error(a, b) < 2e-6 for a, b in zip(expected, found, strict=True))
    assert again.blocks["blocks.0"].is_off


def test_f5_other_chains_run_as_they_are() -> None:
    names = {"0": "1"}, {}, {"1": "2"}
    for layer in (
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, 3, padding=0),
        nn.Conv2d(4, 4, 3, groups=2, padding=1),
    ):
        chain = nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU())
        own = ({f"b.{k}": f"b.{v}" for k, v in pairs.items()} for pairs in names)
        assert subject.chain_of("b", chain, *own) == ()


class Tapped(nn.Sequential):
    """A block of the user that keeps a value from its middle."""

    def forward(self, input: Tensor) -> Tensor:
        for number, layer in enumerate(self):
            input = layer(input)
            if number == 3:
                self.tap = input
        return input


def test_f5_a_block_with_a_forward_of_its_own_runs_as_written() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    model.blocks[0].forward = types.MethodType(
        lambda own, x: 2 * nn.Sequential.forward(own, x), model.blocks[0]
    )
    expected = model(value)
    fast = fast_of(model, value)
    with fast:
        found = model(value)
    assert [path for path, _ in fast.plan.reached] == ["blocks.1"]
    assert all(relative_error(one, other) < 1e-5 for one, other in zip(expected, found, strict=True))


def test_f5_a_forward_that_is_set_after_planning_is_called() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    fast = fast_of(model, value)
    model.blocks[0].forward = types.MethodType(
        lambda own, x: 2 * nn.Sequential.forward(own, x), model.blocks[0]
    )
    expected = model(value)
    with fast:
        found = model(value)
    assert all(relative_error(one, other) < 1e-5 for one, other in zip(expected, found, strict=True))


def test_f5_a_subclass_of_sequential_runs_as_written() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    model.blocks[0] = Tapped(*model.blocks[0])
    fast = fast_of(model, value)
    with fast:
        model(value)
    assert [path for path, _ in fast.plan.reached] == ["blocks.1"]
    assert model.blocks[0].tap.shape[1] == 8


def test_f5_a_hook_that_writes_into_the_output_unseen_is_seen() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    fast = fast_of(model, value)
    model.blocks[0].register_forward_hook(lambda module, given, out: (out.data.mul_(2), None)[1])
    expected = model(value)
    with fast:
        found = model(value)
    assert all(relative_error(one, other) < 1e-5 for one, other in zip(expected, found, strict=True))


def test_f5_forwards_in_inference_mode_and_of_no_sample_run() -> None:
    model, value = trunk(), sparse_map(*CELLS)
    fast = fast_of(model, value)
    with fast, torch.inference_mode():
        assert model(sparse_map(*CELLS))[0].shape == (2, 1, 32, 24)
    with fast:
        assert model(value[:0])[0].shape == (0, 1, 32, 24)
