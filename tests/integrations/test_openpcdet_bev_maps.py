"""F5: OpenPCDet's scatters and height compression write channels-last maps where that gives the same bits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import Options, Replanner
from pcdet_freeze.integrations.openpcdet.prefix.bev_maps import SparseVolume, bev_map_form
from pcdet_freeze.ops.maps.map_layout import is_channels_last

Batch = dict[str, Any]
WIDTH, HEIGHT, CHANNELS = 6, 8, 4


class Scatter(nn.Module):
    """With the attributes, keys and map of OpenPCDet's."""

    def __init__(self) -> None:
        super().__init__()
        self.model_cfg, self.num_bev_features = SimpleNamespace(), CHANNELS
        self.nx, self.ny, self.nz = WIDTH, HEIGHT, 1

    def forward(self, batch_dict: Batch, **kwargs: Any) -> Batch:
        features, coords = batch_dict["pillar_features"], batch_dict["voxel_coords"].long()
        maps = features.new_zeros(int(coords[:, 0].max()) + 1, CHANNELS, HEIGHT, WIDTH)
        maps[coords[:, 0], :, coords[:, 2], coords[:, 3]] = features
        batch_dict["spatial_features"] = maps
        return batch_dict


class Flipped(Scatter):
    """A fork: another map."""

    def forward(self, batch_dict: Batch, **kwargs: Any) -> Batch:
        batch_dict = super().forward(batch_dict)
        batch_dict["spatial_features"] = batch_dict["spatial_features"].flip(3)
        return batch_dict


class Counting(Scatter):
    """A fork: one more key."""

    def forward(self, batch_dict: Batch, **kwargs: Any) -> Batch:
        return super().forward(batch_dict) | {"occupied": 1}


class Compression(nn.Module):
    """With the attributes, keys and map of OpenPCDet's HeightCompression."""

    def __init__(self) -> None:
        super().__init__()
        self.model_cfg, self.num_bev_features = SimpleNamespace(), 2 * CHANNELS

    def forward(self, batch_dict: Batch) -> Batch:
        volume = batch_dict["encoded_spconv_tensor"].dense()
        batch_dict["spatial_features"] = volume.flatten(1, 2)
        batch_dict["spatial_features_stride"] = batch_dict["encoded_spconv_tensor_stride"]
        return batch_dict


def pillars(features: Tensor | None = None) -> Batch:
    coords = torch.tensor([[0, 0, 7, 5], [0, 0, 0, 0], [1, 0, 3, 2]])
    given = torch.randn(3, CHANNELS) if features is None else features
    return {"pillar_features": given, "voxel_coords": coords}


def volume() -> Batch:
    indices = torch.tensor([[0, 1, 7, 5], [1, 0, 3, 2]], dtype=torch.int32)
    sparse = SparseVolume(torch.randn(2, CHANNELS), indices, [2, HEIGHT, WIDTH], 2)
    return {"encoded_spconv_tensor": sparse, "encoded_spconv_tensor_stride": 8}


@pytest.mark.parametrize(("module", "batch"), [(Scatter(), pillars()), (Compression(), volume())])
def test_f5_the_map_is_channels_last_and_has_the_same_bits(module: nn.Module, batch: Batch) -> None:
    form = bev_map_form(module)
    assert form is not None and form.probe_error() == 0
    own, quick = module(dict(batch)), form(dict(batch))
    assert own.keys() == quick.keys() and torch.equal(own["spatial_features"], quick["spatial_features"])
    assert is_channels_last(quick["spatial_features"])


@pytest.mark.parametrize("module", [Flipped(), Counting()])
def test_f5_a_fork_with_another_map_is_found_out_on_a_made_up_batch(module: nn.Module) -> None:
    form = bev_map_form(module)
    assert form is not None and form.probe_error() == float("inf")


def test_f5_other_modules_have_no_quick_form() -> None:
    assert bev_map_form(nn.ReLU()) is None
    holder = Scatter()
    holder.extra = nn.Linear(1, 1)
    assert bev_map_form(holder) is None


def test_f5_features_that_train_are_scattered_by_the_module_itself() -> None:
    form = bev_map_form(Scatter())
    assert form is not None
    found = form(pillars(torch.randn(3, CHANNELS, requires_grad=True)))["spatial_features"]
    assert found.is_contiguous() and found.requires_grad


class Model(nn.Module):
    """A frozen encoder, a scatter without state, a frozen convolution with a norm, a trainable head."""

    def __init__(self, scatter: nn.Module) -> None:
        super().__init__()
        self.vfe, self.scatter = nn.Linear(CHANNELS, CHANNELS), scatter
        layers = [nn.ConvTranspose2d(CHANNELS, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        self.trunk, self.head = nn.Sequential(*layers), nn.Conv2d(8, 1, 1)

    def forward(self, batch: Batch) -> Tensor:
        batch["pillar_features"] = self.vfe(batch["pillar_features"])
        self.maps = self.scatter(batch)["spatial_features"]
        return self.head(self.trunk(self.maps)).sum()


@pytest.mark.parametrize(("scatter", "quick"), [(Scatter, True), (Flipped, False)])
def test_f5_a_scatter_between_frozen_modules_runs_its_quick_form_if_it_is_right(
    scatter: type[nn.Module], quick: bool
) -> None:
    torch.manual_seed(0)
    model, batch = Model(scatter()), pillars()
    freeze(model, ["vfe", "trunk"])
    replanner = Replanner(model.train(), Options(quick_form=bev_map_form, channels_last=True))
    replanner.prepare(dict(batch))
    assert replanner.plan.quick == (("scatter",) if quick else ())
    expected = model(dict(batch))
    with replanner.fast:
        assert torch.allclose(model(dict(batch)), expected, rtol=1e-5)
    assert is_channels_last(model.maps) == quick


def test_f5_a_scatter_behind_a_trainable_encoder_runs_as_written() -> None:
    model, batch = Model(Scatter()), pillars()
    freeze(model, ["trunk"])
    replanner = Replanner(model.train(), Options(quick_form=bev_map_form))
    replanner.prepare(dict(batch))
    assert replanner.plan.quick == ()
