"""A parameter that is added to a frozen module is frozen, with a warning that names it (H5)."""

from __future__ import annotations

import logging

import pytest
import torch
from freeze_toys import Detector, points
from torch import nn

from pcdet_freeze import freeze, unfreeze


class Adapter(nn.Module):
    """A low-rank branch around a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.down(x)


class Scale(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.factor


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_h5_an_adapter_around_a_frozen_layer_is_frozen_with_one_warning(caplog) -> None:
    model = Detector()
    freeze(model, ["vfe"])
    model.vfe[0] = Adapter(model.vfe[0])
    for _ in range(3):
        model(points())
    (text,) = warnings_of(caplog)
    assert (
        "vfe.0.down.weight" in text and "'!vfe.0.down'" in text and "unfreeze(model, ['vfe.0.down'])" in text
    )
    assert not model.vfe[0].down.weight.requires_grad


def test_h5_the_advice_of_the_warning_works(caplog) -> None:
    model = Detector()
    freeze(model, ["vfe"])
    model.vfe[0] = Adapter(model.vfe[0])
    model(points())
    unfreeze(model, ["vfe.0.down"])
    model(points()).sum().backward()
    assert model.vfe[0].down.weight.grad is not None and model.vfe[0].layer.weight.grad is None
    other = Detector()
    other.vfe[0] = Adapter(other.vfe[0])
    freeze(other, ["vfe", "!vfe.0.down"])
    other(points())
    assert other.vfe[0].down.weight.requires_grad and len(warnings_of(caplog)) == 1


def test_h5_a_parametrization_with_a_parameter_of_its_own_is_named(caplog) -> None:
    model = Detector()
    freeze(model, ["vfe"])
    nn.utils.parametrize.register_parametrization(model.vfe[0], "weight", Scale())
    model(points())
    (text,) = warnings_of(caplog)
    assert "vfe.0.parametrizations.weight.0.factor" in text and "original" not in text


def test_h5_the_advice_for_a_parameter_beside_frozen_ones_keeps_those_frozen(caplog) -> None:
    model = Detector()
    freeze(model, ["vfe"])
    model.vfe.scale = nn.Parameter(torch.ones(1))
    model(points())
    (text,) = warnings_of(caplog)
    assert "vfe.scale" in text and "'!vfe', 'vfe.0', 'vfe.1', 'vfe.2'" in text


def test_h5_a_release_says_nothing_of_added_parameters_and_leaves_them_trainable(caplog) -> None:
    model = Detector()
    handle = freeze(model, ["vfe"])
    model.vfe[0] = Adapter(model.vfe[0])
    handle.release()
    assert not warnings_of(caplog) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "change",
    [
        nn.SyncBatchNorm.convert_sync_batchnorm,
        lambda model: nn.utils.parametrizations.weight_norm(model.vfe[0]),
        lambda model: setattr(model.vfe[0], "weight", nn.Parameter(torch.zeros(8, 4))),
        lambda model: model.vfe.__setitem__(1, nn.BatchNorm1d(8)),
        lambda model: model.vfe[0].requires_grad_(True),
    ],
)
def test_h5_a_parameter_that_was_there_before_causes_no_warning(caplog, change) -> None:
    model = Detector().eval()
    freeze(model, ["vfe"])
    change(model)
    model(points())
    assert not warnings_of(caplog) and not any(p.requires_grad for p in model.vfe.parameters())
