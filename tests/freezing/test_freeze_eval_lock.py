"""H1-H4: norm layers, dropout and similar layers are locked in eval mode; other modules keep their flag."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from freeze_toys import Detector, block, points, train_step
from torch import nn
from torch.nn.utils import parametrizations

from pcdet_freeze import FreezeError, FreezePlan, freeze, is_frozen


class MyNorm(nn.BatchNorm1d):
    """A user's subclass with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class HomeMadeNorm(nn.Module):
    """A norm layer that shares no class with torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.running_mean += 0.1 * (x.mean(0) - self.running_mean)
            return x - x.mean(0)
        return x - self.running_mean


class DropPath(nn.Module):
    """Stochastic depth as many repositories have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(len(x), 1) > 0.5) if self.training else x


NORMS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(4), (6, 4)),
    (lambda: nn.BatchNorm1d(4, affine=False), (6, 4)),
    (lambda: nn.BatchNorm1d(4, momentum=None), (6, 4, 3)),
    (lambda: nn.BatchNorm2d(4), (2, 4, 3, 3)),
    (lambda: nn.BatchNorm3d(4), (2, 4, 3, 3, 3)),
    (lambda: nn.InstanceNorm2d(4, track_running_stats=True), (2, 4, 3, 3)),
    (lambda: MyNorm(4), (6, 4)),
    (lambda: HomeMadeNorm(4), (6, 4)),
]


def with_layer(layer: nn.Module) -> nn.Module:
    model = nn.Sequential()
    model.add_module("part", nn.Sequential(layer))
    model.add_module("rest", nn.Identity())
    return model


@pytest.mark.parametrize(("make", "shape"), NORMS)
def test_h1_a_norm_layer_of_any_kind_uses_and_keeps_its_running_statistics(make, shape) -> None:
    layer = make()
    model, x = with_layer(layer), torch.randn(*shape) + 3
    with torch.no_grad():
        model.train()(torch.randn(*shape))
    expected = model.eval()(x)
    handle = freeze(model, ["part"])
    first, second = model.train()(x), model.train()(x + 0)
    assert torch.equal(first, second) and torch.equal(first, expected)
    handle.verify()


def test_h1_a_locked_sync_batch_norm_runs_on_the_cpu() -> None:
    layer = nn.SyncBatchNorm(4)
    model, x = with_layer(layer), torch.randn(6, 4)
    expected = model.eval()(x)
    freeze(model, ["part"])
    assert torch.equal(model.train()(x), expected)


def test_h1_a_norm_layer_without_running_statistics_is_left_alone() -> None:
    model = with_layer(nn.BatchNorm1d(4, track_running_stats=False))
    freeze(model, ["part"])
    assert model.train().part[0].training


def test_h1_a_locked_batch_norm_takes_a_single_point() -> None:
    model = Detector()
    freeze(model, ["vfe", "backbone_2d"])
    assert model.train()(points(1)).shape == (1, 2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        nn.Dropout1d(0.5),
        nn.AlphaDropout(0.5),
        nn.FeatureAlphaDropout(0.5),
        nn.RReLU(),
        DropPath(),
    ],
)
def test_h2_random_layers_are_off(layer: nn.Module) -> None:
    model, x = with_layer(layer), torch.randn(64, 8)
    expected = model.eval()(x)
    freeze(model, ["part"])
    assert torch.equal(model.train()(x), expected)


def test_h2_attention_dropout_is_off() -> None:
    layer = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    model, x = with_layer(nn.Identity()), torch.randn(2, 5, 8)
    model.part.attention = layer
    freeze(model, ["part"])
    model.train()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


def test_h2_rnn_dropout_is_zero_for_the_time_of_the_freeze_and_the_rnn_stays_in_train_mode() -> None:
    rnn = nn.LSTM(4, 4, num_layers=2, dropout=0.5)
    model, x = with_layer(rnn), torch.randn(5, 3, 4)
    handle = freeze(model, ["part"])
    model.train()
    assert rnn.training and rnn.dropout == 0 and torch.equal(rnn(x)[0], rnn(x)[0])
    handle.release()
    assert rnn.dropout == 0.5


def test_h2_a_head_with_weights_is_no_dropout_layer_whatever_its_name() -> None:
    class DropoutHead(nn.Linear):
        pass

    model = with_layer(DropoutHead(4, 4))
    freeze(model, ["part"])
    assert model.train().part[0].training


def test_h3_the_training_flag_of_other_modules_is_left_alone() -> None:
    model = Detector()
    freeze(model, ["vfe", "backbone_2d", "dense_head"])
    model.train()
    locked = {type(m).__name__ for m in model.modules() if not m.training}
    assert locked == {"BatchNorm1d", "Dropout"} and model.dense_head.training and model.backbone_2d.training
    model.eval()
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("old_style", [False, True])
def test_h3_spectral_norm_keeps_its_buffers(old_style: bool) -> None:
    linear = nn.Linear(4, 4)
    linear = nn.utils.spectral_norm(linear) if old_style else parametrizations.spectral_norm(linear)
    model, x = with_layer(linear), torch.randn(6, 4)
    handle = freeze(model, ["part"])
    for _ in range(3):
        model.train()(x)
    handle.verify()
    assert torch.equal(model.train()(x), model.eval()(x))


class Functional(nn.Module):
    """Branches on ``self.training`` by itself, and has a child that does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.inner = nn.Module()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, self.mean, torch.ones(4), training=self.training)


def test_h3_freeze_eval_locks_a_module_whose_own_code_branches_on_training() -> None:
    model, x = with_layer(Functional()), torch.randn(6, 4)
    handle = freeze(model, FreezePlan(("part",), eval=("part.0",)))
    assert torch.equal(model.train()(x), model.eval()(x))
    model.train()
    assert not model.part[0].training and not model.part[0].inner.training and model.part.training
    handle.verify()


def test_h3_freeze_eval_must_name_modules_inside_frozen_ones() -> None:
    with pytest.raises(FreezeError, match=r"EVAL must name modules inside frozen ones; 'dense_head'"):
        freeze(Detector(), FreezePlan(("vfe",), eval=("dense_head",)))
    with pytest.raises(FreezeError, match=r"EVAL: 'vef' names no module"):
        freeze(Detector(), FreezePlan(("vfe",), eval=("vef",)))


def set_flag(model: Detector) -> None:
    model.vfe[1].training = True


UNDOING: list[Callable[[Detector], object]] = [
    lambda m: m.train(),
    lambda m: m.vfe.train(),
    lambda m: m.vfe[1].train(),
    set_flag,
    lambda m: (m.eval(), m.train()),
    lambda m: m.apply(lambda layer: layer.train()),
    lambda m: [setattr(layer, "training", True) for layer in m.modules()],
    lambda m: m.requires_grad_(True),
    lambda m: setattr(m.vfe[1], "weight", nn.Parameter(torch.ones(8))),
]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(range(len(UNDOING)), repeat=2))[::3])
def test_h4_nothing_that_sets_flags_undoes_the_freeze(first: int, second: int) -> None:
    model = Detector()
    handle = freeze(model, ["vfe", "backbone_2d.blocks"])
    mean = model.vfe[1].running_mean.clone()
    for action in (UNDOING[first], UNDOING[second]):
        action(model)
        assert not model.vfe[1].training
        train_step(model)
        assert torch.equal(model.vfe[1].running_mean, mean) and is_frozen(model.vfe)
    assert all(not p.requires_grad and p.grad is None for p in handle.parameters())


def test_h4_a_validation_between_epochs_leaves_the_mode_right() -> None:
    model = Detector()
    handle = freeze(model, ["vfe"])
    for _ in range(2):
        train_step(model)
        model.eval()
        model(points())
        assert not model.backbone_2d.blocks[0][1].training
    model.train()
    assert model.backbone_2d.blocks[0][1].training and not model.vfe[1].training
    handle.verify()


def test_h4_batch_norm_statistics_are_not_reset_by_swa_update_bn() -> None:
    model = Detector()
    handle = freeze(model, ["vfe"])
    torch.optim.swa_utils.update_bn([points(seed=s) for s in range(3)], model)
    handle.verify()
    assert model.backbone_2d.blocks[0][1].num_batches_tracked == 3


def test_parameters_false_locks_layers_and_every_parameter_trains() -> None:
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.vfe[0].weight.clone()
    handle = freeze(model, FreezePlan(("vfe", "backbone_2d.blocks"), parameters=False), optimizer)
    train_step(model, optimizer)
    assert all(p.requires_grad for p in model.parameters()) and not torch.equal(model.vfe[0].weight, weight)
    assert (
        handle.summary()
        == "all parameters are trainable; 4 norm layers locked in eval mode, by vfe, backbone_2d.blocks"
    )
    assert {name.rpartition(".")[2] for name in handle.certificate().digests} == {
        "running_mean", "running_var", "num_batches_tracked"}  # fmt: skip
    handle.verify()
    handle.release()
    assert model.vfe[1].training


def test_h2_with_parameters_false_dropout_is_off_too() -> None:
    model = Detector()
    freeze(model, FreezePlan(("backbone_2d.blocks",), parameters=False))
    model.train()
    first, second = (model.backbone_2d.blocks[0](torch.ones(6, 8)) for _ in range(2))
    assert torch.equal(first, second) and first.requires_grad


def test_h5_an_uninitialised_lazy_module_is_an_error_that_asks_for_a_forward() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), block(4))
    with pytest.raises(FreezeError, match="run one forward") as caught:
        freeze(model, ["0", "1"])
    assert "LazyLinear" in str(caught.value) and "LazyBatchNorm1d" in str(caught.value)
    model(torch.randn(6, 3))
    freeze(model, ["0", "1"]).verify()


def test_h5_a_trainable_lazy_module_is_allowed() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4)), nn.LazyLinear(4))
    handle = freeze(model, ["0", "!0.1"])
    assert handle.summary().startswith("frozen 20 of 20 parameters")
    assert "0               20      20" in handle.report()
    model(torch.randn(2, 4)).sum().backward()
    assert handle.summary().startswith("frozen 20 of 60 parameters")
    handle.verify()
