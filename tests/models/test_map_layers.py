"""Layers of BEV maps: pairs that run as one, and freezing sees the layers as torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.freezing.prefix.fold_bn import Fold, is_foldable_norm, out_axis
from pcdet_freeze.models.map_layers import BatchNorm2d, Conv2d, ConvTranspose2d, MapSequential, run_together
from pcdet_freeze.ops.maps.map_layout import JoinedMap
from pcdet_freeze.utils.tensors import relative_error

LAST = torch.channels_last


def block(kind: type[nn.Sequential] = MapSequential) -> nn.Sequential:
    torch.manual_seed(0)
    return kind(nn.ZeroPad2d(1), nn.Conv2d(6, 8, 3, stride=2, bias=False), BatchNorm2d(8), nn.ReLU())


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def image() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 6, 12, 10, generator=draw).contiguous(memory_format=LAST)


def results(layers: nn.Module, maps: Tensor) -> list[Tensor]:
    """Output, and gradients of the map and of the parameters."""
    given = maps.clone().requires_grad_()
    result = layers(given)
    result.square().sum().backward()
    return [result.detach(), given.grad, *(p.grad for p in layers.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
def test_pairs_that_run_as_one_equal_the_single_layers_to_the_bit(layout: torch.memory_format) -> None:
    maps = image().contiguous(memory_format=layout)
    assert all(map(torch.equal, results(block(), maps), results(block(nn.Sequential), maps)))


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format])
def test_a_channels_last_map_is_not_padded_explicitly(layout: torch.memory_format) -> None:
    with Operators() as ran:
        block()(image().contiguous(memory_format=layout))
    assert ("constant_pad_nd" in ran.names) == (layout != LAST)


@pytest.mark.parametrize("number", range(4))
def test_a_layer_with_a_hook_is_called_and_its_hook_sees_its_own_output(number: int) -> None:
    seen: list[Tensor] = []
    layers = block()
    layers[number].register_forward_hook(lambda *args: seen.append(args[2]))
    result = layers(image())
    assert len(seen) == 1 and torch.equal(result, block()(image()))
    assert torch.equal(seen[0], block()[: number + 1](image()))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Conv2d(4, 4, 1), nn.Conv2d),
        (lambda: ConvTranspose2d(4, 4, 2, stride=2), nn.ConvTranspose2d),
        (lambda: BatchNorm2d(4), nn.BatchNorm2d),
    ],
)
def test_names_state_and_repr_are_those_of_torch(make: Callable[[], nn.Module], kind: type) -> None:
    own = make()
    torchs = kind(*([4] if kind is nn.BatchNorm2d else [4, 4, own.kernel_size]), **_stride(own))
    assert isinstance(own, kind) and repr(own) == repr(torchs)
    assert list(own.state_dict()) == list(torchs.state_dict())


def _stride(layer: nn.Module) -> dict[str, object]:
    return {"stride": layer.stride} if isinstance(layer, nn.ConvTranspose2d) else {}


def test_freezing_locks_and_folds_them() -> None:
    model = nn.Sequential(block(), nn.Conv2d(8, 1, 1))
    freeze(model, ["0"])
    model.train()
    norm = model[0][2]  # type: ignore[index]
    assert is_locked(norm) and is_foldable_norm(norm) and isinstance(norm, BatchNorm2d)
    assert [out_axis(layer) for layer in (Conv2d(4, 4, 1), ConvTranspose2d(4, 4, 2, stride=2))] == [0, 1]


def test_a_subclass_with_a_forward_of_its_own_is_called() -> None:
    class Doubled(BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    layers = block()
    layers[2] = Doubled(8)
    assert torch.equal(layers(image()), 2 * block()(image()))
    assert not is_foldable_norm(layers[2].eval())


def test_convolutions_of_one_map_run_as_one_product() -> None:
    convs = [Conv2d(6, width, 1) for width in (3, 5)]
    maps = image().requires_grad_()
    together, apart = run_together(convs, maps), [conv(maps) for conv in convs]
    assert max(map(relative_error, together, apart)) < 1e-6
    one, each = (torch.autograd.grad(sum(p.sum() for p in parts), maps)[0] for parts in (together, apart))
    assert relative_error(each, one) < 1e-6


def test_a_frozen_convolution_beside_a_trainable_one_gets_no_graph() -> None:
    convs = [Conv2d(6, width, 1).requires_grad_(width == 5) for width in (3, 5)]
    assert [part.requires_grad for part in run_together(convs, image())] == [False, True]


def test_the_gradient_of_a_1x1_transposed_weight_has_its_strides() -> None:
    layer = ConvTranspose2d(6, 8, 1)
    layer(image()).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.stride() == layer.weight.stride()


def frozen_deblock() -> MapSequential:
    torch.manual_seed(0)
    conv = ConvTranspose2d(6, 4, 2, stride=2, bias=False)
    return MapSequential(conv, BatchNorm2d(4).eval(), nn.ReLU())


@pytest.mark.parametrize("folded", [False, True])
def test_a_frozen_deblock_writes_its_channels_of_one_map_to_the_same_bits(folded: bool) -> None:
    up, joined = frozen_deblock(), JoinedMap(image(), (2, 24, 20), [3, 4])
    for module, forward in Fold(up[0], up[1], relu=up[2]).forwards().items() if folded else ():
        module.__dict__["forward"] = forward
    with torch.no_grad():
        assert up.can_write(image())
        own, found = up(image()), up.forward_into(image(), joined.places[1])
    assert torch.equal(own, found) and found.data_ptr() == joined.places[1].data_ptr()


def test_a_frozen_deblock_with_a_graph_or_a_hook_on_its_relu_is_concatenated() -> None:
    up = frozen_deblock()
    assert not up.can_write(image())
    up[2].register_forward_hook(lambda module, args, output: None)
    with torch.no_grad():
        assert not up.can_write(image())
