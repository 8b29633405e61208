"""F5: the deblocks of OpenPCDet's BaseBEVBackbone write into one map where that gives the same features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pillar_detector import Backbone2D, filled_norm, up
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import Options, Replanner
from pcdet_freeze.integrations.openpcdet.prefix.joined_maps import joined_maps_form
from pcdet_freeze.ops.maps.map_layout import is_channels_last
from pcdet_freeze.utils.tensors import relative_error

Batch = dict[str, Any]


class Scaled(Backbone2D):
    """A fork: another map."""

    def forward(self, batch_dict: Batch) -> Batch:
        batch_dict = super().forward(batch_dict)
        batch_dict["spatial_features_2d"] = batch_dict["spatial_features_2d"] * 2
        return batch_dict


class Naming(Backbone2D):
    """A fork: one more key."""

    def forward(self, batch_dict: Batch) -> Batch:
        return {**super().forward(batch_dict), "levels": 2}


class Upsampled(Backbone2D):
    """One more deblock, of the concatenated map."""

    def __init__(self) -> None:
        super().__init__()
        self.deblocks.append(up(16, 2))

    def forward(self, batch_dict: Batch) -> Batch:
        x, ups = batch_dict["spatial_features"], []
        for block, deblock in zip(self.blocks, list(self.deblocks)[:2], strict=True):
            x = block(x)
            ups.append(deblock(x))
        batch_dict["spatial_features_2d"] = self.deblocks[-1](torch.cat(ups, dim=1))
        return batch_dict


class Plain(Backbone2D):
    """Its first deblock is a 1x1 convolution (USE_CONV_FOR_NO_STRIDE)."""

    def __init__(self) -> None:
        super().__init__()
        self.deblocks[0][0] = nn.Conv2d(8, 8, 1, bias=False)


class Overlapping(Backbone2D):
    """A fork: the outputs of a deblock overlap."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, bias=False)
        self.deblocks[1] = nn.Sequential(layer, filled_norm(nn.BatchNorm2d(8)), nn.ReLU())


class Model(nn.Module):
    """A frozen backbone and a trainable head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone_2d, self.head = backbone, nn.LazyConv2d(1, 1)

    def forward(self, batch: Batch) -> Tensor:
        self.maps = self.backbone_2d(batch)["spatial_features_2d"]
        return self.head(self.maps).sum()


class Operators(TorchDispatchMode):
    """Records the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def batch(last: bool = True) -> Batch:
    maps = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"spatial_features": maps.contiguous(memory_format=torch.channels_last) if last else maps}


def planned(kind: type[nn.Module], names: Any = "backbone_2d") -> tuple[Model, Replanner]:
    torch.manual_seed(0)
    model = Model(kind()).train()
    model(batch())
    freeze(model, [names])
    replanner = Replanner(model, Options(quick_form=joined_maps_form, channels_last=True))
    replanner.prepare(batch())
    return model, replanner


@pytest.mark.parametrize("kind", [Backbone2D, Upsampled, Plain])
def test_f5_deblocks_write_into_one_map_without_a_concatenation(kind: type[nn.Module]) -> None:
    model, replanner = planned(kind)
    model(batch())
    own = model.maps
    assert replanner.plan.quick == ("backbone_2d",) and replanner.plan.plain == ()
    with replanner.fast, Operators() as operators:
        model(batch())
    assert relative_error(own, model.maps) <= 2e-6 and is_channels_last(model.maps)
    assert "aten.cat.default" not in operators.names and "aten.addmm.out" in operators.names


@pytest.mark.parametrize("kind", [Scaled, Naming])
def test_f5_a_fork_with_another_map_or_key_concatenates_as_written(kind: type[nn.Module]) -> None:
    model, replanner = planned(kind)
    model(batch())
    own = model.maps
    assert replanner.plan.quick == () and len(replanner.plan.folds) == 4
    with replanner.fast, Operators() as operators:
        model(batch())
    assert relative_error(own, model.maps) <= 2e-6 and "aten.cat.default" in operators.names


@pytest.mark.parametrize("kind", [Overlapping, nn.ReLU])
def test_f5_a_backbone_with_other_deblocks_has_no_quick_form(kind: type[nn.Module]) -> None:
    assert joined_maps_form(kind().eval()) is None


def test_f5_a_backbone_with_a_third_part_has_no_quick_form() -> None:
    backbone = Backbone2D().eval()
    assert joined_maps_form(backbone) is not None
    backbone.attention = nn.Conv2d(16, 16, 1)
    assert joined_maps_form(backbone) is None


def test_f5_a_map_of_another_memory_format_is_concatenated_to_the_same_bits() -> None:
    model, replanner = planned(Backbone2D)
    form = joined_maps_form(model.backbone_2d)
    assert form is not None
    with replanner.fast:
        expected = type(model.backbone_2d).forward(model.backbone_2d, batch(last=False))
        found = form(batch(last=False))
    assert torch.equal(expected["spatial_features_2d"], found["spatial_features_2d"])


def test_f5_the_weights_are_folded_again_where_a_frozen_tensor_was_replaced() -> None:
    model, replanner = planned(Backbone2D)
    with torch.no_grad():
        model.backbone_2d.deblocks[1][1].bias.add_(1.0)
    model(batch())
    own = model.maps
    with replanner.fast:
        model(batch())
    assert relative_error(own, model.maps) <= 2e-6


def test_f5_a_deblock_that_trains_keeps_the_concatenation() -> None:
    model, replanner = planned(Backbone2D, "backbone_2d.blocks")
    assert replanner.plan.quick == ()
    with replanner.fast:
        model(batch()).backward()
    assert model.backbone_2d.deblocks[0][0].weight.grad is not None
